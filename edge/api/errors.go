package api

import "errors"

// What a client's error can be tested for.
var (
	// ErrNoConfig: the edge has no config yet (404 on GET /v1/config).
	ErrNoConfig = errors.New("edge has no config yet")
	// ErrConflict: the edge serves another config than the caller planned from
	// (412). Plan again.
	ErrConflict = errors.New("edge serves another config")
	// ErrRejected: the edge read the config and will not serve it (422); another
	// edge would say the same. What it served before is still live.
	ErrRejected = errors.New("edge rejected the config")
	// ErrForbidden: the caller's tunnel address may not do this (403): it is no
	// control peer of the edge's bootstrap, or no agent of its live config.
	ErrForbidden = errors.New("forbidden for this tunnel address")
)
