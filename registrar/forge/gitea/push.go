package gitea

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// zero stands for no commit.
const zero = "0000000000000000000000000000000000000000"

// move is a branch going from one commit to another that the server has already; "" is
// no commit.
type move struct{ branch, from, to string }

// push moves all the branches or none (gitprotocol-pack(5), gitprotocol-http(5)). When
// one is no longer at its from, that is errMoved.
func (f *Forge) push(ctx context.Context, moves ...move) error {
	address := f.server + f.repo + ".git/git-receive-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(ask(moves)))
	if err != nil {
		return err
	}
	req.SetBasicAuth("token", f.token()) // the name does not matter
	req.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	req.Header.Set("Accept", "application/x-git-receive-pack-result")
	raw, err := f.do(req, http.StatusOK)
	if err != nil {
		return err
	}
	if err := report(raw, len(moves)); err != nil {
		return fmt.Errorf("push: %w", err)
	}
	return nil
}

// ask is the request: a line for each branch, and a pack without objects unless all are
// removed.
func ask(moves []move) []byte {
	var b bytes.Buffer
	removed := true
	for i, m := range moves {
		line := object(m.from) + " " + object(m.to) + " refs/heads/" + m.branch
		if i == 0 {
			line += "\x00 report-status atomic agent=kokoa"
		}
		fmt.Fprintf(&b, "%04x%s", len(line)+4, line)
		removed = removed && m.to == ""
	}
	b.WriteString("0000")
	if !removed {
		pack := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
		sum := sha1.Sum(pack)
		b.Write(pack)
		b.Write(sum[:])
	}
	return b.Bytes()
}

// object is a commit in a request.
func object(sha string) string {
	if sha == "" {
		return zero
	}
	return sha
}

// report reads the server's report: whether it moved so many branches.
func report(raw []byte, branches int) error {
	unpacked, done := false, 0
	for len(raw) > 0 {
		if len(raw) < 4 {
			return errors.New("the report is cut off")
		}
		n, err := strconv.ParseUint(string(raw[:4]), 16, 16)
		if err != nil {
			return errors.New("the report is no report")
		}
		if n == 0 {
			if !unpacked || done != branches {
				return errors.New("the report leaves something out")
			}
			return nil
		}
		if n < 4 || int(n) > len(raw) {
			return errors.New("the report is cut off")
		}
		line := strings.TrimSuffix(string(raw[4:n]), "\n")
		raw = raw[n:]
		switch {
		case line == "unpack ok":
			unpacked = true
		case strings.HasPrefix(line, "ok "):
			done++
		case strings.HasPrefix(line, "ng ") && strings.Contains(line, "hook declined"):
			return fmt.Errorf("%w: %s", forge.ErrProtected, plain(line))
		case strings.HasPrefix(line, "ng "):
			return moved(errors.New(plain(line)))
		default:
			return errors.New(plain(line))
		}
	}
	return errors.New("the report is cut off")
}
