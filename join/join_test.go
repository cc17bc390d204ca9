package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/keys"
)

func newKey(t testing.TB) keys.Private {
	t.Helper()
	k, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTokens(t *testing.T) {
	control := newKey(t).Public()
	token, err := NewToken(control)
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	again, err := ParseToken(" " + text + "\n")
	if err != nil || again != token || again.Control() != control || again.ID() != token.ID() || again.Hash() != token.Hash() {
		t.Fatalf("%v became %v, %v", token, again, err)
	}
	for _, printed := range []string{fmt.Sprint(token), fmt.Sprintf("%#v %+v %s", token, token, token)} {
		if strings.Contains(printed, text[len(tokenPrefix):]) || !strings.Contains(printed, token.ID()) {
			t.Errorf("prints as %s", printed)
		}
	}
	for name, wrong := range map[string]string{
		"empty": "", "no prefix": text[1:], "cut": text[:len(text)-1], "longer": text + "A", "spaces within": text[:20] + " " + text[20:],
	} {
		if _, err := ParseToken(wrong); !errors.Is(err, ErrToken) || wrong != "" && strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Any one letter changed is noticed before anybody is asked.
func TestTokenSlips(t *testing.T) {
	token, err := NewToken(newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(len(tokenPrefix), len(text)-1).Draw(t, "at")
		to := rapid.SampledFrom([]byte("ABCDEFabcdef0123456789-_")).Draw(t, "to")
		if text[at] == to {
			return
		}
		if _, err := ParseToken(text[:at] + string(to) + text[at+1:]); !errors.Is(err, ErrToken) {
			t.Fatalf("letter %d as %c: %v", at, to, err)
		}
	})
}

func TestSeals(t *testing.T) {
	host, control, other := newKey(t), newKey(t), newKey(t)
	s, err := Seal(host, control.Public(), "question", "a secret")
	if err != nil {
		t.Fatal(err)
	}
	if wire, _ := json.Marshal(s); strings.Contains(string(wire), "secret") || s.Key != host.Public() {
		t.Errorf("on the wire: %s", wire)
	}
	var got string
	if err := s.Open(control, "question", &got); err != nil || got != "a secret" {
		t.Fatalf("%q, %v", got, err)
	}
	changed := s
	changed.Box = append([]byte{}, s.Box...)
	changed.Box[len(changed.Box)-1] ^= 1
	posing := s
	posing.Key = other.Public()
	for name, open := range map[string]func() error{
		"another receiver": func() error { return s.Open(other, "question", &got) },
		"another kind":     func() error { return s.Open(control, "answer", &got) },
		"changed":          func() error { return changed.Open(control, "question", &got) },
		"another sender":   func() error { return posing.Open(control, "question", &got) },
		"short": func() error {
			return Sealed{Key: host.Public(), Box: make([]byte, nonceSize-1)}.Open(control, "question", &got)
		},
		"empty box": func() error {
			return Sealed{Key: host.Public(), Box: make([]byte, nonceSize)}.Open(control, "question", &got)
		},
	} {
		if err := open(); !errors.Is(err, ErrSeal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

var asked = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

func TestRotation(t *testing.T) {
	old, next, control, other := newKey(t), newKey(t), newKey(t), newKey(t)
	data, err := SealRotation("vm1", asked, old, next, control.Public())
	if err != nil {
		t.Fatal(err)
	}
	if key, at, err := OpenRotation("vm1", old.Public(), control, data); err != nil || key != next.Public() || !at.Equal(asked) {
		t.Fatalf("%v, %v, %v", key, at, err)
	}
	// A key whose private half somebody else has cannot be made an agent's.
	proof, _ := Seal(next, control.Public(), kindNextKey, "vm2")
	stolen, _ := Seal(old, control.Public(), kindRotation, rotation{"vm1", asked, proof})
	borrowed, _ := json.Marshal(stolen)
	for name, open := range map[string]func() (keys.Public, time.Time, error){
		"another old key":  func() (keys.Public, time.Time, error) { return OpenRotation("vm1", other.Public(), control, data) },
		"another agent":    func() (keys.Public, time.Time, error) { return OpenRotation("vm2", old.Public(), control, data) },
		"another control":  func() (keys.Public, time.Time, error) { return OpenRotation("vm1", old.Public(), other, data) },
		"proof of another": func() (keys.Public, time.Time, error) { return OpenRotation("vm1", old.Public(), control, borrowed) },
		"sealed by a stranger": func() (keys.Public, time.Time, error) {
			forged, _ := SealRotation("vm1", asked, other, next, control.Public())
			return OpenRotation("vm1", old.Public(), control, forged)
		},
	} {
		if key, _, err := open(); !errors.Is(err, ErrSeal) || !key.IsZero() {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
	if _, _, err := OpenRotation("vm1", old.Public(), control, []byte("{")); err == nil {
		t.Error("half a message was taken")
	}
}

// Whoever answers in the control plane's place learns no token and is found out.
func TestAskAStranger(t *testing.T) {
	host, control, stranger := newKey(t), newKey(t), newKey(t)
	token, err := NewToken(control.Public())
	if err != nil {
		t.Fatal(err)
	}
	q := Question{Register: &Registration{Token: token.Reveal(), Name: "vm1"}}
	answers := map[string]func(w http.ResponseWriter, body []byte){
		"no JSON":         func(w http.ResponseWriter, _ []byte) { io.WriteString(w, "<html>") },
		"an empty answer": func(w http.ResponseWriter, _ []byte) { io.WriteString(w, "{}") },
		"its own seal": func(w http.ResponseWriter, _ []byte) {
			s, _ := Seal(stranger, host.Public(), kindAnswer, Answer{State: Live})
			json.NewEncoder(w).Encode(s)
		},
		"its own seal under another name": func(w http.ResponseWriter, _ []byte) {
			s, _ := Seal(stranger, host.Public(), kindAnswer, Answer{State: Live})
			s.Key = control.Public()
			json.NewEncoder(w).Encode(s)
		},
		"the question": func(w http.ResponseWriter, body []byte) { w.Write(body) },
		"an answer of old": func(w http.ResponseWriter, _ []byte) {
			s, _ := Seal(control, host.Public(), kindAnswer, Answer{ID: "another", State: Live})
			json.NewEncoder(w).Encode(s)
		},
		"a redirect": func(w http.ResponseWriter, _ []byte) {
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"an error": func(w http.ResponseWriter, _ []byte) { http.Error(w, "no\x1b[31m", http.StatusBadGateway) },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			var seen []byte
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				seen, _ = io.ReadAll(r.Body)
				answer(w, seen)
			}))
			defer server.Close()
			c := Client{URL: server.URL, Control: control.Public(), Key: host}
			a, err := c.Ask(t.Context(), q)
			if err == nil || a.State != "" || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%+v, %v", a, err)
			}
			if len(seen) == 0 || strings.Contains(string(seen), token.Reveal()) || strings.Contains(string(seen), "vm1") {
				t.Errorf("the stranger read %s", seen)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	token, err := NewToken(newKey(f).Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.Reveal())
	f.Add("kokoa_")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatal(err)
			}
			return
		}
		if strings.TrimSpace(text) != got.Reveal() {
			t.Fatalf("%q and %q are one token", text, got.Reveal())
		}
	})
}

func FuzzOpenRotation(f *testing.F) {
	old, next, control := newKey(f), newKey(f), newKey(f)
	data, err := SealRotation("vm1", asked, old, next, control.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, _, err := OpenRotation("vm1", old.Public(), control, data); err == nil && key != next.Public() {
			t.Fatalf("%s gave %v", data, key)
		}
	})
}
