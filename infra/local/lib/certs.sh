# A certificate authority of the services' own, the servers' certificate, and an authority that signed nothing.
# shellcheck shell=bash disable=SC2154

store_password=fraudline-store

make_certs() {
    local work
    # A day left, so that they do not run out under a test.
    if openssl x509 -checkend 86400 -noout -in "$certs/server.pem" >/dev/null 2>&1; then return; fi
    command -v openssl >/dev/null || die "openssl is missing: apt-get install openssl"
    mkdir -p "$root"
    work=$(mktemp -d "$root/certs.XXXXXX")
    if ! write_certs "$work" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        rm -rf "$work"
        die "openssl could not make the certificates"
    fi
    rm -rf "$certs"
    mv -T "$work" "$certs"
    chmod 755 "$certs"
}

write_certs() (
    set -e
    cd "$1"
    authority ca 'fraudline local CA'
    authority untrusted-ca 'fraudline untrusted CA'
    new_key server
    openssl req -new -key server.key -subj '/CN=localhost' -out server.csr
    printf '%s\n' 'basicConstraints=critical,CA:FALSE' 'keyUsage=critical,digitalSignature' 'extendedKeyUsage=serverAuth' \
        "subjectAltName=DNS:localhost,IP:$host" >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days 3650 -extfile server.ext -out server.pem
    # For the services on the JVM.
    openssl pkcs12 -export -name server -in server.pem -inkey server.key -certfile ca.pem \
        -passout "pass:$store_password" -out server.p12
    rm -f server.csr server.ext ./*.srl
)

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }

authority() {
    new_key "$1"
    openssl req -x509 -new -key "$1.key" -sha256 -days 3650 -subj "/CN=$2" -out "$1.pem" \
        -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign'
}
