module github.com/kokoa-proxy/kokoa/e2e/gitea

go 1.26.0

toolchain go1.27.4

require github.com/kokoa-proxy/kokoa v0.0.0

replace github.com/kokoa-proxy/kokoa => ../..
