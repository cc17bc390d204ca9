package github

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
)

// Answers come as they are, whether they are remembered or not, and what is
// remembered is bounded.
func TestRemembering(t *testing.T) {
	var modified, unmodified int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			t.Error(err)
		}
		etag := fmt.Sprintf(`"%d"`, size)
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			unmodified++
			w.WriteHeader(http.StatusNotModified)
			return
		}
		modified++
		w.Header().Set("Link", "<next>")
		io.WriteString(w, strings.Repeat("x", size))
	}))
	defer server.Close()
	memory := newRemembering(bounded{http.DefaultTransport})
	client := http.Client{Transport: memory}
	get := func(size int) (int, error) {
		resp, err := client.Get(fmt.Sprintf("%s/%d", server.URL, size))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("Link") != "<next>" {
			t.Errorf("%d, with %v", resp.StatusCode, resp.Header)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		return int(n), err
	}
	for _, size := range []int{0, 1, answerRemembered - 1, answerRemembered, answerRemembered + 1, 10 * answerRemembered} {
		modified, unmodified = 0, 0
		for range 3 {
			if n, err := get(size); n != size || err != nil {
				t.Errorf("%d bytes of %d, %v", n, size, err)
			}
		}
		if kept := size <= answerRemembered; kept && (modified != 1 || unmodified != 2) || !kept && modified != 3 {
			t.Errorf("%d bytes: sent %d times, and %d times not", size, modified, unmodified)
		}
	}
	for size := range 2 * answersAtMost {
		if _, err := get(size); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(memory.answers); n > answersAtMost {
		t.Errorf("%d answers are remembered", n)
	}
	if _, err := get(answerAtMost + 1); err == nil {
		t.Error("an answer without bound was read")
	}
}
