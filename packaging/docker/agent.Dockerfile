# The agent of a host that runs containers. The context is made by packaging/image.sh.
#
#   docker run -e KOKOA_CONTROL_PLANE=https://control.example.com -e KOKOA_ORIGIN_NAME=shop \
#     -e KOKOA_TOKEN -v kokoa-agent:/var/lib/kokoa-agent kokoa-agent
#
# It needs no privilege: the tunnel runs in user space, unless the container has
# CAP_NET_ADMIN and /dev/net/tun.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY passwd /etc/passwd
COPY kokoa-agent /kokoa-agent
COPY --chown=65532:65532 empty /var/lib/kokoa-agent
COPY --chown=65532:65532 empty /tmp
USER 65532:65532
ENV KOKOA_DATA=/var/lib/kokoa-agent
VOLUME /var/lib/kokoa-agent
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["/kokoa-agent", "health"]
ENTRYPOINT ["/kokoa-agent"]
CMD ["run"]
