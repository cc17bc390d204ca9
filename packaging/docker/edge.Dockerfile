# A public edge. The context is made by packaging/image.sh.
#
#   docker run -p 80:80 -p 443:443 -p 51820:51820/udp \
#     -v ./edge.json:/etc/kokoa-edge/edge.json:ro -v kokoa-edge:/var/lib/kokoa-edge kokoa-edge
#
# The bootstrap file belongs to user 65532 with mode 0600, and its "data" is
# /var/lib/kokoa-edge.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY passwd /etc/passwd
COPY kokoa-edge /kokoa-edge
COPY --chown=65532:65532 empty /var/lib/kokoa-edge
COPY --chown=65532:65532 empty /tmp
USER 65532:65532
VOLUME /var/lib/kokoa-edge
EXPOSE 80 443 51820/udp
ENTRYPOINT ["/kokoa-edge"]
CMD ["run", "--config", "/etc/kokoa-edge/edge.json"]
