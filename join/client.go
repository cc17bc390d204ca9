package join

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Client asks a control plane. It is safe for concurrent use.
type Client struct {
	// URL is the control plane's, like "https://control.example.com".
	URL string
	// Control is its public join key, from the token.
	Control keys.Public
	// Key is the host's WireGuard key.
	Key keys.Private
	// HTTP makes the requests; nil is a client of its own without redirects.
	HTTP *http.Client
}

// The errors of a Client that a caller may ask for with errors.Is. All others say
// that the control plane could not be reached or is not well: later may be better.
var (
	// ErrStranger: whoever answers does not hold the control plane's join key.
	ErrStranger = errors.New("this is not the control plane that made the token")
	// ErrBusy: the control plane asks to come back later.
	ErrBusy = errors.New("the control plane is busy")
)

// maxMessage bounds what is read of an answer, in bytes.
const maxMessage = 1 << 20

// Ask asks q, which needs no ID. An answer that the control plane did not seal is
// ErrStranger.
func (c *Client) Ask(ctx context.Context, q Question) (Answer, error) {
	q.ID = rand.Text()
	s, err := Seal(c.Key, c.Control, kindQuestion, q)
	if err != nil {
		return Answer{}, err
	}
	body, err := json.Marshal(s)
	if err != nil {
		return Answer{}, fmt.Errorf("ask control plane: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, q.Wait+30*time.Second)
	defer cancel()
	data, err := c.do(ctx, http.MethodPost, body)
	if err != nil {
		return Answer{}, err
	}
	var sealed Sealed
	if err := json.Unmarshal(data, &sealed); err != nil {
		return Answer{}, fmt.Errorf("ask control plane: %w", err)
	}
	var a Answer
	if sealed.Key != c.Control {
		return Answer{}, fmt.Errorf("ask control plane at %s: %w", c.URL, ErrStranger)
	}
	if err := sealed.Open(c.Key, kindAnswer, &a); err != nil {
		return Answer{}, fmt.Errorf("ask control plane at %s: %w: %w", c.URL, ErrStranger, err)
	}
	if a.ID != q.ID {
		return Answer{}, fmt.Errorf("ask control plane at %s: it answers another question: %w", c.URL, ErrStranger)
	}
	return a, nil
}

// Hello asks who the control plane is. Only TLS says that the answer is its own.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	data, err := c.do(ctx, http.MethodGet, nil)
	if err != nil {
		return Hello{}, err
	}
	var h Hello
	if err := json.Unmarshal(data, &h); err != nil {
		return Hello{}, fmt.Errorf("ask control plane: %w", err)
	}
	return h, nil
}

// own makes the requests of clients that bring no http.Client. A redirect is an
// answer like any other, and none of ours.
var own = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func (c *Client) do(ctx context.Context, method string, body []byte) ([]byte, error) {
	where, err := url.JoinPath(c.URL, Path)
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, where, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := c.HTTP
	if client == nil {
		client = own
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return data, nil
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("ask control plane at %s: %w", c.URL, ErrStranger)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return nil, fmt.Errorf("ask control plane at %s: %w: %s", c.URL, ErrBusy, oneLine(data))
	}
	return nil, fmt.Errorf("ask control plane at %s: %s: %s", c.URL, resp.Status, oneLine(data))
}

// oneLine is the start of a text that a stranger wrote, fit for a terminal.
func oneLine(data []byte) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, string(data[:min(len(data), 200)]))
	return strings.TrimSpace(text)
}

// OpenQuestion is for the control plane: it reads what a Client sealed. The error is
// ErrSeal when it is for another one.
func OpenQuestion(control keys.Private, s Sealed) (Question, error) {
	var q Question
	return q, s.Open(control, kindQuestion, &q)
}

// SealAnswer is for the control plane: it seals an answer for the host that asked.
func SealAnswer(control keys.Private, host keys.Public, a Answer) (Sealed, error) {
	return Seal(control, host, kindAnswer, a)
}
