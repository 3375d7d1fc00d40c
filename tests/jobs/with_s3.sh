# shellcheck shell=bash
# To be sourced: a service that speaks S3 (moto's, from PyPI), with a bucket; TEST_S3 is its address and TEST_BUCKET the
# bucket's name. Where it cannot be installed, says so and leaves artifacts in local folders.

moto_home=${CARGO_TARGET_DIR:-target}/clients/moto
if ! [ -x "$moto_home/bin/moto_server" ]; then
    { python3 -m venv "$moto_home" && "$moto_home/bin/pip" install -q 'moto[server,s3]==5.2.5'; } || rm -rf "$moto_home"
fi
if ! [ -x "$moto_home/bin/moto_server" ]; then
    echo "moto cannot be installed here: artifacts are tested in local folders only" >&2
    return 0
fi
s3_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$moto_home/bin/moto_server" -H 127.0.0.1 -p "$s3_port" >/dev/null 2>&1 &
s3_process=$!
stop_s3() {
    kill "$s3_process" 2>/dev/null || true
    if declare -F stop_postgres >/dev/null; then stop_postgres; fi
}
trap stop_s3 EXIT
TEST_S3=http://127.0.0.1:$s3_port
until python3 - "$TEST_S3" <<'PY'
import sys, urllib.request
request = urllib.request.Request(sys.argv[1] + "/artifacts", method="PUT", headers={
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"})
try:
    urllib.request.urlopen(request, timeout=5)
except OSError:
    sys.exit(1)
PY
do
    kill -0 "$s3_process" || { echo "the S3 service has ended" >&2; exit 1; }
    sleep 0.2
done
export TEST_S3 TEST_BUCKET=artifacts AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1
