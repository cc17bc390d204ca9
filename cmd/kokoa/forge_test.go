package main

import (
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

func TestForgeIsFoundByItsRepo(t *testing.T) {
	for spec, want := range map[string]string{
		"https://git.example.com/acme/fleet":           "https://git.example.com",
		"https://git.example.com:3000/acme/fleet.git":  "https://git.example.com:3000",
		"http://127.0.0.1:3000/acme/fleet":             "http://127.0.0.1:3000",
		"ssh://git@git.example.com:2222/acme/fleet":    "https://git.example.com",
		"git@git.example.com:acme/fleet.git":           "https://git.example.com",
		"https://token@git.example.com/acme/fleet.git": "https://git.example.com",
	} {
		place, err := repo.Remote(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := (forgeSetting{place: place}).web(); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}
