package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// maxAdvertised bounds what a server may say before the objects: a line for each
// of its refs.
const maxAdvertised = 16 << 20

// httpConnector opens sessions of Git's smart HTTP protocol (gitprotocol-http).
func httpConnector(u *url.URL, auth Auth, limits Limits) (func(context.Context) (transport.UploadPackSession, error), error) {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.ResponseHeaderTimeout = limits.Timeout
	base.DisableKeepAlives = true // a minute passes before the next request
	client := &http.Client{
		Transport: boundedTransport{base, limits.Bytes + maxAdvertised},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if from := via[0].URL; req.URL.Host != from.Host || req.URL.Scheme != from.Scheme {
				return fmt.Errorf("%w: the server sends us on to %s://%s; if that is where the repository is, give its URL",
					ErrDenied, req.URL.Scheme, req.URL.Host)
			}
			return nil
		},
	}
	gitTransport := githttp.NewClient(client)
	var method transport.AuthMethod
	if auth.Password != "" || auth.Username != "" {
		basic := &githttp.BasicAuth{Username: auth.Username, Password: auth.Password}
		if basic.Username == "" {
			basic.Username = "git"
		}
		method = basic
	}
	return func(context.Context) (transport.UploadPackSession, error) {
		// A session changes its endpoint when it is redirected.
		endpoint, err := transport.NewEndpoint(u.String())
		if err != nil {
			return nil, err
		}
		return gitTransport.NewUploadPackSession(endpoint, method)
	}, nil
}

// boundedTransport ends answers that are too long, errors too.
type boundedTransport struct {
	http.RoundTripper
	limit int64
}

func (b boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	limit := b.limit
	if res.StatusCode != http.StatusOK {
		limit = 4096
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{&limited{res.Body, limit, limit}, res.Body}
	return res, nil
}

// sshConnector opens sessions over ssh (gitprotocol-pack). go-git's own transport
// would wait for ever on a server that accepts and then says nothing.
func sshConnector(u *url.URL, auth Auth) (func(context.Context) (transport.UploadPackSession, error), error) {
	if auth.SSHKey == "" {
		return nil, errors.New("ssh needs a private key: make one with ssh-keygen, and give its public half to the server as a deploy key that may only read")
	}
	if auth.KnownHosts == "" {
		return nil, errors.New("ssh needs a known_hosts file to know the server by: make one with ssh-keyscan and compare it with what the server's owner publishes")
	}
	signer, err := ssh.ParsePrivateKey([]byte(auth.SSHKey))
	if errors.As(err, new(*ssh.PassphraseMissingError)) {
		return nil, errors.New("the ssh key has a passphrase; use a deploy key without one")
	}
	if err != nil {
		return nil, errors.New("the ssh key is no PEM text of a private key")
	}
	address := net.JoinHostPort(u.Hostname(), "22")
	if port := u.Port(); port != "" {
		address = net.JoinHostPort(u.Hostname(), port)
	}
	return func(ctx context.Context) (transport.UploadPackSession, error) {
		hosts, err := gitssh.NewKnownHostsDb(auth.KnownHosts)
		if err != nil {
			return nil, fmt.Errorf("read known hosts: %w", err)
		}
		config := &ssh.ClientConfig{
			User:              u.User.Username(),
			Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
			HostKeyCallback:   hosts.HostKeyCallback(),
			HostKeyAlgorithms: hosts.HostKeyAlgorithms(address),
		}
		conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		// Closing the connection is what ends a read or write that waits.
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		s := &sshSession{conn: conn, stop: stop}
		if err := s.start(address, config, u.Path); err != nil {
			s.Close()
			return nil, explainSSH(err, address, auth.KnownHosts)
		}
		return s, nil
	}, nil
}

func explainSSH(err error, address, file string) error {
	var key *knownhosts.KeyError
	switch {
	case errors.As(err, &key) && len(key.Want) == 0:
		return fmt.Errorf("%w: %s has no key of %s", ErrDenied, file, address)
	case errors.As(err, &key):
		return fmt.Errorf("%w: the key of %s is not the one in %s: someone may be in between", ErrDenied, address, file)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("%w: %s does not take the ssh key", ErrDenied, address)
	}
	return err
}

// sshSession is one run of git-upload-pack on a server.
type sshSession struct {
	conn   net.Conn
	stop   func() bool
	client *ssh.Client
	run    *ssh.Session
	in     io.WriteCloser
	out    io.Reader
	said   *said
	refs   *packp.AdvRefs
}

func (s *sshSession) start(address string, config *ssh.ClientConfig, path string) error {
	conn, channels, requests, err := ssh.NewClientConn(s.conn, address, config)
	if err != nil {
		return err
	}
	s.client = ssh.NewClient(conn, channels, requests)
	if s.run, err = s.client.NewSession(); err != nil {
		return err
	}
	s.said = &said{}
	s.run.Stderr = s.said
	if s.in, err = s.run.StdinPipe(); err != nil {
		return err
	}
	if s.out, err = s.run.StdoutPipe(); err != nil {
		return err
	}
	return s.run.Start("git-upload-pack '" + strings.ReplaceAll(path, "'", `'\''`) + "'")
}

func (s *sshSession) AdvertisedReferences() (*packp.AdvRefs, error) {
	return s.AdvertisedReferencesContext(context.Background())
}

func (s *sshSession) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	if s.refs != nil {
		return s.refs, nil
	}
	refs := packp.NewAdvRefs()
	err := refs.Decode(&limited{s.out, maxAdvertised, maxAdvertised})
	switch {
	case errors.Is(err, packp.ErrEmptyInput):
		// The program did not run, or ended at once. When it has, all that it says
		// about the cause has arrived.
		s.in.Close()
		_ = s.run.Wait()
		return nil, fmt.Errorf("%w: the server says %q", ErrNotRepository, s.said.first())
	case errors.Is(err, packp.ErrEmptyAdvRefs), err == nil && refs.IsEmpty():
		return nil, transport.ErrEmptyRemoteRepository
	case err != nil:
		return nil, err
	}
	transport.FilterUnsupportedCapabilities(refs.Capabilities)
	s.refs = refs
	return refs, nil
}

func (s *sshSession) UploadPack(ctx context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := req.UploadRequest.Encode(s.in); err != nil {
		return nil, err
	}
	if err := req.UploadHaves.Encode(s.in, true); err != nil {
		return nil, err
	}
	if err := pktline.NewEncoder(s.in).EncodeString("done\n"); err != nil {
		return nil, err
	}
	res := packp.NewUploadPackResponse(req)
	if err := res.Decode(io.NopCloser(s.out)); err != nil {
		return nil, fmt.Errorf("%w; the server says %q", err, s.said.first())
	}
	return res, nil
}

func (s *sshSession) Close() error {
	s.stop()
	if s.client == nil {
		return s.conn.Close()
	}
	err := s.client.Close()
	s.client.Wait() // its goroutines are gone
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// said keeps the start of what a server says aside.
type said struct {
	mu   sync.Mutex
	text []byte
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p[:min(len(p), 200-len(s.text))]...)
	return len(p), nil
}

func (s *said) first() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return oneLine(string(s.text))
}
