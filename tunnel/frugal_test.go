package tunnel

import (
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

func TestMemoryIsReturnedOncePerBurst(t *testing.T) {
	tests := []struct {
		name    string
		packets []int // between two ticks
		want    int
	}{
		{"idle", []int{0, 0, 0}, 0},
		{"thin", []int{burst / 2, burst / 2, 0}, 0},
		{"going on", []int{burst, burst, burst}, 0},
		{"over", []int{burst, burst, 0}, 1},
		{"over long since", []int{burst, 0, 0, 100, 0}, 1},
		{"twice", []int{burst, 0, 0, burst, 100, 0}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFrugal(sink{})
			defer f.Close()
			returned := 0
			for _, packets := range tt.packets {
				f.Write(make([][]byte, packets), 0)
				if f.over() {
					returned++
				}
			}
			if returned != tt.want {
				t.Errorf("returned memory %d times, want %d", returned, tt.want)
			}
		})
	}
}

// sink is a TUN device that takes all.
type sink struct{ tun.Device }

func (sink) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (sink) Close() error                            { return nil }
