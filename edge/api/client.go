package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"
)

// Client speaks to one edge. Its errors name the edge. It is safe for concurrent
// use. It keeps the last config it saw, so that asking for one that did not change
// costs neither transfer nor decoding.
type Client struct {
	edge string
	base string
	http *http.Client

	mu     sync.Mutex
	config Config
	digest string // of config; "" when none is kept
}

// NewClient makes a client for the edge of a name, at its tunnel address and
// EdgePort, through dial; a tunnel.Device's Dial is one.
func NewClient(edge string, at netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) *Client {
	return &Client{
		edge: edge,
		base: "http://" + at.String(),
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, at) },
				DisableCompression: true,
				IdleConnTimeout:    time.Minute,
				WriteBufferSize:    64 << 10,
				ReadBufferSize:     64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close lets go of idle connections. The client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Config is the edge's live config, or ErrNoConfig. It is shared: read it only.
func (c *Client) Config(ctx context.Context) (Config, error) {
	c.mu.Lock()
	config, digest := c.config, c.digest
	c.mu.Unlock()
	header := http.Header{}
	if digest != "" {
		header.Set("If-None-Match", quote(digest))
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/config", header, nil)
	if err != nil {
		return Config{}, c.error("get config", err)
	}
	defer drain(resp)
	if resp.StatusCode == http.StatusNotModified && digest != "" {
		return config, nil
	}
	if resp.StatusCode != http.StatusOK {
		return Config{}, c.error("get config", refusal(resp))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxConfig+1))
	if err != nil {
		return Config{}, c.error("get config", err)
	}
	if len(body) > maxConfig {
		return Config{}, c.error("get config", fmt.Errorf("answer is larger than %d bytes", maxConfig))
	}
	if config, err = DecodeConfig(body); err != nil {
		return Config{}, c.error("get config", err)
	}
	if digest, ok := unquote(resp.Header.Get("ETag")); ok {
		c.keep(config, digest)
	}
	return config, nil
}

// PutConfig replaces the config whose digest is current, "" for none, by next,
// which must be normalized and is kept: do not change it afterwards. Errors can be
// tested for ErrConflict and ErrRejected. Putting what is live already is no error,
// and makes the edge set its tunnel's peers again.
func (c *Client) PutConfig(ctx context.Context, current string, next Config) error {
	header := http.Header{}
	if current == "" {
		header.Set("If-None-Match", "*")
	} else {
		header.Set("If-Match", quote(current))
	}
	body, err := json.Marshal(next)
	if err != nil {
		return c.error("put config", err)
	}
	if len(body) > compressAbove {
		header.Set("Content-Encoding", "gzip")
		body = compress(body)
	}
	resp, err := c.do(ctx, http.MethodPut, "/v1/config", header, body)
	if err != nil {
		return c.error("put config", err)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusNoContent {
		return c.error("put config", refusal(resp))
	}
	c.keep(next, next.Digest())
	return nil
}

// State is what the edge reports of itself.
func (c *Client) State(ctx context.Context) (State, error) {
	var s State
	return s, c.call(ctx, "get state", http.MethodGet, "/v1/state", nil, &s)
}

// PutCertificate gives the edge a certificate to serve, or a renewed one.
func (c *Client) PutCertificate(ctx context.Context, cert Certificate) error {
	return c.call(ctx, "put certificate "+cert.Name, http.MethodPut, "/v1/certificates/"+url.PathEscape(cert.Name), cert, nil)
}

// DeleteCertificate takes a certificate away. One that is not there is no error.
func (c *Client) DeleteCertificate(ctx context.Context, name string) error {
	return c.call(ctx, "delete certificate "+name, http.MethodDelete, "/v1/certificates/"+url.PathEscape(name), nil, nil)
}

// PutChallenge lets the edge answer an ACME HTTP-01 challenge (RFC 8555 section
// 8.3), for ChallengeLife at most.
func (c *Client) PutChallenge(ctx context.Context, token, keyAuthorization string) error {
	return c.call(ctx, "put challenge", http.MethodPut, "/v1/challenges/"+url.PathEscape(token), challenge{keyAuthorization}, nil)
}

// DeleteChallenge ends what PutChallenge began. One that is not there is no error.
func (c *Client) DeleteChallenge(ctx context.Context, token string) error {
	return c.call(ctx, "delete challenge", http.MethodDelete, "/v1/challenges/"+url.PathEscape(token), nil, nil)
}

// AgentConfig is the calling agent's signed config and its tag. Given the tag of
// the one the agent has ("" for none), it waits up to wait for another and, when
// there is none, returns the zero Signed with the same tag. ErrNoConfig means that
// the edge has none for this agent, ErrForbidden that this agent is no peer in the
// edge's live config.
func (c *Client) AgentConfig(ctx context.Context, tag string, wait time.Duration) (Signed, string, error) {
	header := http.Header{}
	if tag != "" {
		header.Set("If-None-Match", tag)
	}
	path := "/v1/agent/config"
	if wait > 0 {
		path += "?wait=" + wait.String()
	}
	resp, err := c.do(ctx, http.MethodGet, path, header, nil)
	if err != nil {
		return Signed{}, "", c.error("get agent config", err)
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusNotModified:
		return Signed{}, tag, nil
	case http.StatusOK:
	default:
		return Signed{}, "", c.error("get agent config", refusal(resp))
	}
	var s Signed
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxConfig)).Decode(&s); err != nil {
		return Signed{}, "", c.error("get agent config", err)
	}
	return s, resp.Header.Get("ETag"), nil
}

// Heartbeat tells the edge how the calling agent is.
func (c *Client) Heartbeat(ctx context.Context, h Heartbeat) error {
	return c.call(ctx, "send heartbeat", http.MethodPost, "/v1/agent/heartbeat", h, nil)
}

// compressAbove is the size in bytes from which compressing costs less than the
// tunnel does.
const compressAbove = 64 << 10

func (c *Client) keep(config Config, digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config, c.digest = config, digest
}

// call sends in as JSON and reads the answer into out; both may be nil.
func (c *Client) call(ctx context.Context, what, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return c.error(what, err)
		}
	}
	resp, err := c.do(ctx, method, path, http.Header{}, body)
	if err != nil {
		return c.error(what, err)
	}
	defer drain(resp)
	if resp.StatusCode/100 != 2 {
		return c.error(what, refusal(resp))
	}
	if out != nil {
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxConfig)).Decode(out); err != nil {
			return c.error(what, err)
		}
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	// Every call may be made twice. The key says so to net/http, which then tries
	// again on a kept connection that an edge's restart has killed; it is not sent.
	req.Header["Idempotency-Key"] = nil
	resp, err := c.http.Do(req)
	var u *url.Error
	if errors.As(err, &u) {
		// The address and method are in no one's interest: the edge's name is there.
		err = u.Err
	}
	return resp, err
}

func (c *Client) error(what string, err error) error {
	return fmt.Errorf("edge %s: %s: %w", c.edge, what, err)
}

// refusal is an answer that is an error, as one that can be tested for.
func refusal(resp *http.Response) error {
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSmall)).Decode(&f); err != nil || f.Error == "" {
		f.Error = resp.Status
	}
	kinds := map[int]error{
		http.StatusPreconditionFailed:  ErrConflict,
		http.StatusUnprocessableEntity: ErrRejected,
		http.StatusForbidden:           ErrForbidden,
		http.StatusNotFound:            ErrNoConfig,
	}
	return refused{f.Error, kinds[resp.StatusCode]}
}

// refused is what an edge said, and what kind of refusal it is, if one of ours.
type refused struct {
	text string
	kind error
}

func (r refused) Error() string { return r.text }
func (r refused) Unwrap() error { return r.kind }

func compress(body []byte) []byte {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		panic("api: gzip has the level BestSpeed: " + err.Error())
	}
	// A bytes.Buffer takes every write.
	z.Write(body)
	z.Close()
	return buf.Bytes()
}

// drain lets the connection be used again.
func drain(resp *http.Response) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxSmall))
	resp.Body.Close()
}
