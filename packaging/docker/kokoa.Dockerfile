# The control plane. The context is made by packaging/image.sh.
#
#   docker run -v ./secret:/etc/kokoa/secret:ro -v kokoa:/var/lib/kokoa kokoa \
#     serve --repo https://git.example.com/fleet.git --state /var/lib/kokoa
#
# The fleet secret belongs to user 65532 with mode 0600.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY passwd /etc/passwd
COPY kokoa /kokoa
COPY --chown=65532:65532 empty /var/lib/kokoa
COPY --chown=65532:65532 empty /tmp
USER 65532:65532
ENV HOME=/var/lib/kokoa KOKOA_SECRET_FILE=/etc/kokoa/secret
VOLUME /var/lib/kokoa
ENTRYPOINT ["/kokoa"]
CMD ["serve", "--help"]
