#!/usr/bin/env bash
# Proves the dashboards and the rules against a real Prometheus: it scrapes an agent, over TLS and with a password, which
# watches a server of Tokio, one of Ruby's fibers and a Sidekiq under load, and every query of every panel, of every variable and of every recording rule must
# return data.
#
#   deploy/grafana/check.sh [PROFILER [FIXTURE]]
#
# Needs root, prometheus, promtool, openssl, curl, jq, Ruby with async and Sidekiq, and redis-server. Ends only what it has started.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
profiler=${1:-$root/target/release/profiler}
fixture=${2:-$root/target/fixtures/latest/release/fixture}
ruby=$root/tests/fixtures/ruby/fiber_server.rb
dashboards=("$here/profiler-tokio.json" "$here/profiler-node.json" "$here/profiler-ruby.json")
rules=$root/deploy/prometheus/rules.yml
rate_interval=10s # what Grafana would put in for $__rate_interval: four scrapes at least
warm_up=20        # seconds of load before the first query

for tool in prometheus promtool openssl curl jq ruby sidekiq redis-server; do
    command -v "$tool" >/dev/null || { echo "error: $tool is missing (Debian: apt-get install prometheus openssl curl jq ruby-async ruby-sidekiq redis-server)" >&2; exit 1; }
done
for program in "$profiler" "$fixture" "$ruby"; do
    [ -x "$program" ] || { echo "error: no $program: run \`cargo xtask test\`, which builds it" >&2; exit 1; }
done

for dashboard in "${dashboards[@]}"; do
    jq -e "[.panels[].id] | length == (unique | length)" "$dashboard" >/dev/null || { echo "error: panels share an id" >&2; exit 1; }
done
promtool check rules "$rules"
promtool test rules "$root/deploy/prometheus/rules_test.yml"

work=$(mktemp -d)
started=()
cgroup=
finish() {
    status=$?
    # The fixture ends with its standard input; the others end when they are told to.
    exec 8>&- 9>&- || true
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    [ -z "$cgroup" ] || rmdir "$cgroup"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

# A free port of the loopback address: one that nobody listens on.
free_port() {
    local port
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
    done
    echo "error: no free port" >&2; return 1
}

await() { # URL SECONDS
    for _ in $(seq "$(($2 * 10))"); do
        if get -f -o "$work/answer" "$1"; then return; fi
        sleep 0.1
    done
    echo "error: no answer from $1" >&2
    cat "$work"/*.log >&2
    return 1
}

# A certificate of our own, and the user `check` with the password `test`.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=check \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$work/key.pem" -out "$work/certificate.pem" 2>/dev/null
cat >"$work/web.yml" <<'YAML'
tls_server_config: { cert_file: certificate.pem, key_file: key.pem }
basic_auth_users: { check: "$2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay" }
YAML
get() { curl -s --cacert "$work/certificate.pem" --user check:test "$@"; }

# The server that is watched: a file of its own, so that the agent watches nothing else.
cp "$fixture" "$work/fixture"
printf '[[rules]]\naction = "include"\nexecutable = "%s"\n' "$work/fixture" >"$work/rules.toml"
printf '[[rules]]\naction = "include"\nruntime = "ruby"\n' >>"$work/rules.toml"
mkfifo "$work/stdin"
"$work/fixture" http 0 <"$work/stdin" >"$work/ready" 2>"$work/fixture.log" &
started+=($!)
exec 9>"$work/stdin"
for _ in $(seq 100); do [ -s "$work/ready" ] && break; sleep 0.1; done
pid=$(jq -r .pid "$work/ready")
port=$(jq -r .port "$work/ready")

# The other one; it ends with its input, too.
mkfifo "$work/stdin-ruby"
"$ruby" <"$work/stdin-ruby" >"$work/ready-ruby" 2>"$work/ruby.log" &
started+=($!)
exec 8>"$work/stdin-ruby"
for _ in $(seq 100); do [ -s "$work/ready-ruby" ] && break; sleep 0.1; done
port_ruby=$(jq -r .port "$work/ready-ruby")

# Who takes jobs, and the store that has them.
port_store=$(free_port)
redis-server --port "$port_store" --bind 127.0.0.1 --save "" --appendonly no >"$work/store.log" 2>&1 &
started+=($!)
for _ in $(seq 100); do redis-cli -p "$port_store" ping >/dev/null 2>&1 && break; sleep 0.1; done
REDIS="redis://127.0.0.1:$port_store/0" JOBS="$work/jobs" \
    sidekiq -e production -c 3 -r "$root/tests/fixtures/ruby/sidekiq.rb" >"$work/sidekiq.log" 2>&1 &
started+=($!)

# A CPU limit that holds it now and then, where this host permits one.
limit() { # FOLDER FILE QUOTA
    [ -e "$1/cgroup.procs" ] && mkdir "$1/profiler-check-$$" || return 1
    cgroup=$1/profiler-check-$$
    echo "$3" >"$cgroup/$2" && echo "$pid" >"$cgroup/cgroup.procs"
}
limit /sys/fs/cgroup/cpu cpu.cfs_quota_us 30000 || limit /sys/fs/cgroup cpu.max "30000 100000" || echo "no CPU limit can be set here"

# The load: new connections (for the accept queue), and many requests on old ones (for tasks and the run queue).
load() {
    while true; do
        curl -s "http://127.0.0.1:$port/spawn#[1-200]" "http://127.0.0.1:$port/work?us=300#[1-20]" >/dev/null || true
        for _ in 1 2 3 4 5; do curl -s "http://127.0.0.1:$port/" >/dev/null || true; done
        curl -s "http://127.0.0.1:$port_ruby/#[1-500]" >/dev/null || true
        redis-cli -p "$port_store" lpush queue:default '{"class":"Job","args":["sleep",20],"retry":false,"queue":"default","jid":"1","created_at":1.0,"enqueued_at":1.0}' >/dev/null || true
    done
}
load & started+=($!)
load & started+=($!)
sleep 1 # workers that have never parked are not recognised

# The profiler. Without a budget: totals are absent where they are only sampled.
metrics_port=$(free_port)
"$profiler" agent --config.file "$work/rules.toml" --budget off --requests --web.config.file "$work/web.yml" \
    --web.listen-address "127.0.0.1:$metrics_port" 2>"$work/profiler.log" &
started+=($!)
await "https://127.0.0.1:$metrics_port/readyz" 30

# Prometheus.
prometheus_port=$(free_port)
cat >"$work/prometheus.yml" <<YAML
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: ["$rules"]
scrape_configs:
  - job_name: profiler
    scheme: https
    tls_config: { ca_file: "$work/certificate.pem" }
    basic_auth: { username: check, password: test }
    static_configs: [{ targets: ["127.0.0.1:$metrics_port"] }]
YAML
promtool check config "$work/prometheus.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
    --web.listen-address="127.0.0.1:$prometheus_port" --log.level=error 2>"$work/prometheus.log" &
started+=($!)
api=http://127.0.0.1:$prometheus_port
await "$api/-/ready" 30
echo "measuring for $warm_up s ..."
sleep "$warm_up"

failures=0
checked=0
# What need not be on the page: no CPU limit can be set here; there is no budget; one of the server's two runtimes does
# nothing, so that its workers are not recognised.
# The server is in no container, and as a rule in no unit, and its threads are workers and no loops. No API is asked for names, and nothing is pushed.
optional='cpu_throttled_seconds overhead_budget_ratio deferred_ runtime_worker runtime_queue_depth target_container_info
    target_unit_info loop_ program_runs_missed_total kubernetes_ discovery_undecided discovery_unnamed otlp_'
page=$(get "https://127.0.0.1:$metrics_port/metrics")
is_absent() { # QUERY
    local metric
    for metric in $optional; do
        if [[ $1 == *profiler_$metric* && $page != *$'\nprofiler_'$metric* ]]; then return 0; fi
    done
    return 1
}
expect_data() { # WHAT QUERY
    local query=$2 answer rows
    query=${query//'$__rate_interval'/$rate_interval}
    query=${query//'$instance'/.*}
    query=${query//'$process'/fixture|ruby|sidekiq.*}
    query=${query//'$pid'/.*}
    for label in namespace pod container; do query=${query//"\$$label"/.*}; done
    checked=$((checked + 1))
    answer=$(curl -s --get --data-urlencode "query=$query" "$api/api/v1/query")
    # NaN is what a quantile of nothing is: it is no data.
    rows=$(jq '[.data.result[]? | select(.value[1] != "NaN")] | length' <<<"$answer")
    if [ "${rows:-0}" -gt 0 ]; then
        printf 'ok    %3d series  %s\n' "$rows" "$1"
    elif is_absent "$query"; then
        printf 'none  not on the page  %s\n' "$1"
    else
        printf 'FAIL  %s\n      %s\n      %s\n' "$1" "$query" "$(jq -r '.error // "no data"' <<<"$answer")"
        failures=$((failures + 1))
    fi
}

while IFS=$'\t' read -r title query; do
    expect_data "panel: $title" "$query"
done < <(jq -r '.panels[] | .title as $t | .targets[]? | [$t, .expr] | join("\t")' "${dashboards[@]}")

while IFS=$'\t' read -r name definition; do
    inner=${definition#label_values(}
    inner=${inner%)}
    selector=${inner%,*}
    label=${inner##*, }
    expect_data "variable: $name" "count by ($label) ($selector)"
done < <(jq -r '.templating.list[] | select(.type == "query") | [.name, .definition] | join("\t")' "${dashboards[@]}")

while read -r record; do
    expect_data "recording rule: $record" "$record"
done < <(sed -n 's/^ *- record: //p' "$rules")

# No alert fires on a healthy server, and every rule can be evaluated.
alerts=$(curl -s "$api/api/v1/alerts" | jq -r '.data.alerts[] | select(.state == "firing") | .labels.alertname')
if [ -n "$alerts" ]; then
    echo "FAIL  alerts fire on a healthy server: $alerts"
    failures=$((failures + 1))
fi
unhealthy=$(curl -s "$api/api/v1/rules" | jq -r '.data.groups[].rules[] | select(.health != "ok") | "\(.name): \(.lastError)"')
if [ -n "$unhealthy" ]; then
    echo "FAIL  rules: $unhealthy"
    failures=$((failures + 1))
fi

# Every metric that the page has is on the dashboard, but for those that are standard and say nothing of this program.
queries=$(jq -r '.. | .expr? // empty' "${dashboards[@]}")
exempt=' process_virtual_memory_bytes process_max_fds process_start_time_seconds '
while read -r metric; do
    if [[ $exempt != *" $metric "* ]] && ! grep -qE "\b${metric}(_bucket|_sum)?\b" <<<"$queries"; then
        echo "FAIL  no panel shows $metric"
        failures=$((failures + 1))
    fi
done < <(get "https://127.0.0.1:$metrics_port/metrics" | sed -n 's/^# TYPE \([^ ]*\) .*/\1/p')

if [ "$failures" -gt 0 ]; then
    echo "$failures failures; $checked queries"
    exit 1
fi
echo "$checked queries: all of what is on the page have data, and every metric has a panel"
