package github

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// refusal is what GitHub said, and what that means. It prints as the former.
type refusal struct {
	text string
	kind error // may be nil
}

func (r refusal) Error() string { return r.text }

func (r refusal) Unwrap() error { return r.kind }

func conflict(format string, args ...any) error {
	return refusal{fmt.Sprintf(format, args...), forge.ErrConflict}
}

// trouble adds what was being done to what GitHub's answer means.
func trouble(doing string, err error) error {
	return fmt.Errorf("%s: %w", doing, meaning(err, time.Now()))
}

// meaning turns the client's errors into those that forge names. What is neither
// is left as it is: the network's trouble, or GitHub's.
func meaning(err error, now time.Time) error {
	var known refusal
	var limit forge.LimitError
	var primary *gh.RateLimitError
	var secondary *gh.AbuseRateLimitError
	var code *gh.TwoFactorAuthError
	var answer *gh.ErrorResponse
	switch {
	case errors.As(err, &known): // from below the client, which wraps it in an address
		return known
	case errors.As(err, &limit):
		return limit
	case errors.As(err, &primary):
		if primary.Rate.Reset.IsZero() {
			return forge.LimitError{Until: now.Add(time.Minute)}
		}
		return forge.LimitError{Until: primary.Rate.Reset.Time}
	case errors.As(err, &secondary):
		if secondary.RetryAfter == nil {
			return forge.LimitError{Until: now.Add(time.Minute)}
		}
		return forge.LimitError{Until: now.Add(*secondary.RetryAfter)}
	case errors.As(err, &code):
		return refusal{"GitHub wants a second factor: use a fine-grained token", forge.ErrDenied}
	case errors.As(err, &answer) && answer.Response != nil:
		return answered(answer, now)
	}
	return err
}

// answered is what an answer of 400 and more means.
func answered(answer *gh.ErrorResponse, now time.Time) error {
	text, header := said(answer), answer.Response.Header
	switch answer.Response.StatusCode {
	case http.StatusTooManyRequests:
		return forge.LimitError{Until: retryAt(header, now)}
	case http.StatusForbidden:
		if header.Get("Retry-After") != "" || strings.Contains(strings.ToLower(text), "rate limit") {
			return forge.LimitError{Until: retryAt(header, now)}
		}
		if needs := header.Get("X-Accepted-GitHub-Permissions"); needs != "" {
			text += "; this needs " + needs
		}
		return refusal{text, forge.ErrDenied}
	case http.StatusUnauthorized:
		return refusal{text + clock(header, now), forge.ErrDenied}
	case http.StatusNotFound:
		// That of a private repo, to whoever may not see it.
		return refusal{"the repo does not exist, or the credentials may not see it: " + text, forge.ErrDenied}
	case http.StatusConflict:
		if strings.Contains(text, "Repository is empty") {
			text += ": push a first commit"
		}
	case http.StatusUnprocessableEntity:
		if strings.Contains(text, "rule violations") || strings.Contains(strings.ToLower(text), "protected branch") {
			return refusal{text, forge.ErrProtected}
		}
	}
	return refusal{text, nil}
}

// retryAt is when GitHub's headers allow the next request. Without any, its
// documentation asks for a minute.
func retryAt(header http.Header, now time.Time) time.Time {
	if after, err := strconv.ParseInt(header.Get("Retry-After"), 10, 32); err == nil && after >= 0 {
		return now.Add(time.Duration(after) * time.Second)
	}
	if reset, err := strconv.ParseInt(header.Get("X-RateLimit-Reset"), 10, 64); err == nil && header.Get("X-RateLimit-Remaining") == "0" {
		return time.Unix(reset, 0)
	}
	return now.Add(time.Minute)
}

// clock is a hint at why a token of an App's is not taken.
func clock(header http.Header, now time.Time) string {
	date, err := http.ParseTime(header.Get("Date"))
	if off := now.Sub(date).Round(time.Second); err == nil && off.Abs() > time.Minute {
		return fmt.Sprintf("; this host's clock is off by %s", off)
	}
	return ""
}

// said is GitHub's own words, on one line.
func said(err error) string {
	var answer *gh.ErrorResponse
	if !errors.As(err, &answer) || answer.Response == nil {
		return err.Error()
	}
	words := []string{answer.Message}
	if answer.Message == "" {
		words[0] = http.StatusText(answer.Response.StatusCode)
	}
	for _, e := range answer.Errors {
		switch {
		case e.Message != "":
			words = append(words, e.Message)
		case e.Field != "" || e.Code != "":
			words = append(words, e.Field+" is "+e.Code)
		}
	}
	text := strings.Join(strings.Fields(strings.Join(words, ": ")), " ")
	if len(text) > textAtMost {
		text = strings.ToValidUTF8(text[:textAtMost], "") + "…"
	}
	return fmt.Sprintf("GitHub answered %d: %s", answer.Response.StatusCode, text)
}

const textAtMost = 500

func status(err error) int {
	var answer *gh.ErrorResponse
	if errors.As(err, &answer) && answer.Response != nil {
		return answer.Response.StatusCode
	}
	return 0
}

// says reports whether err is an answer of GitHub's with these words in it.
func says(err error, words string) bool {
	return status(err) != 0 && strings.Contains(said(err), words)
}

// invalid reports whether GitHub found a field of a request invalid.
func invalid(err error, field string) bool {
	var answer *gh.ErrorResponse
	if !errors.As(err, &answer) {
		return false
	}
	for _, e := range answer.Errors {
		if e.Field == field && e.Code == "invalid" {
			return true
		}
	}
	return false
}
