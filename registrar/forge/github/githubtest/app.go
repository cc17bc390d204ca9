package githubtest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// jwtTrouble is why GitHub does not take an App's own token, or "".
func (s *Server) jwtTrouble(token string, now time.Time) string {
	const undecodable = "A JSON web token could not be decoded"
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return undecodable
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return undecodable
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if rsa.VerifyPKCS1v15(s.key, crypto.SHA256, sum[:], signature) != nil {
		return undecodable
	}
	var header struct{ Alg, Typ string }
	var claims struct {
		Iss      string
		Iat, Exp int64
	}
	for text, v := range map[string]any{parts[0]: &header, parts[1]: &claims} {
		decoded, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || json.Unmarshal(decoded, v) != nil {
			return undecodable
		}
	}
	switch {
	case header.Alg != "RS256":
		return undecodable
	case claims.Iss != strconv.FormatInt(s.App.ID, 10):
		return "Integration not found"
	case claims.Iat > now.Unix():
		return "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
	case claims.Exp <= now.Unix():
		return "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires"
	case claims.Exp > now.Add(10*time.Minute).Unix():
		return "'Expiration time' claim ('exp') is too far in the future"
	}
	return ""
}

func (s *Server) createToken(r *request) reply {
	if r.PathValue("installation") != strconv.FormatInt(s.App.Installation, 10) {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	var asked struct {
		Repositories []string          `json:"repositories"`
		Permissions  map[string]string `json:"permissions"`
	}
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	if !slices.Equal(asked.Repositories, []string{s.Repo}) {
		return r.failure(http.StatusUnprocessableEntity, "There is at least one repository that does not exist or is not accessible to the parent installation.")
	}
	for permission, level := range asked.Permissions {
		if has := s.permissions[permission]; has != level && has != "write" {
			return r.failure(http.StatusUnprocessableEntity, "The permissions requested are not granted to this installation.")
		}
	}
	token := "ghs_" + rand.Text()
	end := time.Now().Add(s.life)
	s.installations[token] = end
	return reply{status: http.StatusCreated, body: map[string]any{
		"token":                token,
		"expires_at":           end.UTC().Format(time.RFC3339),
		"permissions":          asked.Permissions,
		"repository_selection": "selected",
	}}
}
