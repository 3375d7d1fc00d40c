# shellcheck shell=bash
# To be sourced: a server of the shipped pair, and of its dense model with a chat template, on a free port of this
# machine, stopped when the script ends.
#
# Reads $binary and, if set, $job_workers, how many trainings are carried out at once, $tools, where clients are
# installed beside the build, and $requirements, which of Python's are, into $tools/venv. Gives $address, the server's;
# $key, an API key that may do anything; $reader_key, one that may ask only; $work, a directory that is removed with the server; and $tools.

tools=${tools:-target/clients}
mkdir -p "$tools"
[ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check -r "${requirements:-tests/clients/requirements.txt}"

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

cp -r bridges/tinypython/dense "$work/chat"
cat >"$work/chat/chat_template.jinja" <<'TEMPLATE'
{% for message in messages %}
# {{ message.role }}: {{ message.content.strip() }}
{% endfor %}
{% if add_generation_prompt %}# assistant:{% endif %}
TEMPLATE

"$binary" key tester >"$work/key.toml" 2>"$work/key"
key=$(sed -n 's/^\(ck-.*\)$/\1/p' "$work/key")
"$binary" key reader >"$work/reader.toml" 2>"$work/reader"
reader_key=$(sed -n 's/^\(ck-.*\)$/\1/p' "$work/reader")
{
    echo "data_dir = \"$work/data\""
    echo "library = \"$work/library\""
    echo "pairs = [\"bridges/tinypython\"]"
    echo "models.my-chat-model = \"$work/chat\""
    sed 's/^role = .*/role = "admin"/' "$work/key.toml"
    cat "$work/reader.toml"
    echo "[jobs]"
    echo "workers = ${job_workers:-1}"
    # Nobody is there: generated requests bring no models.
    echo "[hub]"
    echo 'endpoint = "http://127.0.0.1:9"'
} >"$work/server.toml"
: >"$work/log"
"$binary" serve --config "$work/server.toml" --listen 127.0.0.1:0 2>"$work/log" &
server=$!
for _ in $(seq 300); do
    address=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$work/log")
    [ -n "$address" ] && break
    kill -0 "$server" || { cat "$work/log"; exit 1; }
    sleep 0.1
done
