#!/bin/sh
# Makes the token of `tests/tests/registries.rs` and the certificate of whoever signs such tokens. They are good for nothing else, and for eighty years.
set -eu
cd "$(dirname "$0")"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 29200 -subj "/CN=authority of a test" -keyout authority.key -out authority.pem
encode() { base64 | tr -d '=\n' | tr '/+' '_-'; }
chain=$(openssl x509 -in authority.pem -outform der | base64 | tr -d '\n')
header=$(printf '{"typ":"JWT","alg":"ES256","x5c":["%s"]}' "$chain" | encode)
claims=$(printf '{"iss":"a kiln","aud":"registry","sub":"kiln","nbf":1700000000,"iat":1700000000,"exp":4200000000,"jti":"1","access":[{"type":"repository","name":"lab/net","actions":["pull","push"]}]}' | encode)
# OpenSSL gives two integers in ASN.1, a token has them as 32 bytes each.
signature=$(printf '%s.%s' "$header" "$claims" | openssl dgst -sha256 -sign authority.key -binary |
    openssl asn1parse -inform der | sed -n 's/.*INTEGER *://p' | awk '{ printf "%64s", $1 }' | tr ' ' 0 | xxd -r -p | encode)
printf '%s.%s.%s' "$header" "$claims" "$signature" > token
rm authority.key
