# Redis: a single server (redis), three masters (redis-cluster), a watched pair (redis-sentinel).
# shellcheck shell=bash disable=SC2154

redis_port=${FRAUDLINE_LOCAL_REDIS_PORT:-16379}
redis_secure_port=${FRAUDLINE_LOCAL_REDIS_SECURE_PORT:-16380}
# The three nodes take this port and the two after it, and the same plus 10000 among themselves.
redis_cluster_port=${FRAUDLINE_LOCAL_REDIS_CLUSTER_PORT:-16401}
redis_sentinel_port=${FRAUDLINE_LOCAL_REDIS_SENTINEL_PORT:-26411}
# The first master; the replica takes the port after it.
redis_pair_port=${FRAUDLINE_LOCAL_REDIS_SENTINEL_MASTER_PORT:-16411}

redis_install() {
    if command -v redis-server >/dev/null && command -v redis-cli >/dev/null; then return; fi
    command -v apt-get >/dev/null || die "redis-server or redis-cli is missing: install Redis 7"
    ((EUID == 0)) || die "redis-server or redis-cli is missing: sudo apt-get install redis-server"
    note "installing redis-server with apt-get"
    local log
    log=$(mktemp)
    {
        # A fresh machine has no package lists.
        apt-get update -q &&
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends redis-server
    } >"$log" 2>&1 </dev/null 9>&- || {
        tail -n 20 "$log" >&2
        die "apt-get install redis-server failed: its last lines are above, the rest in $log"
    }
    rm -f "$log"
    # The package's own service, on port 6379, is not what this script needs.
    if [[ -d /run/systemd/system ]]; then
        systemctl -q disable --now redis-server || true
    else
        service redis-server stop >/dev/null 2>&1 || true
    fi
}
redis_cluster_install() { redis_install; }
redis_sentinel_install() { redis_install; }

redis_ports() { echo "$redis_port $redis_secure_port"; }
redis_cluster_ports() { echo "$((redis_cluster_port + ${1##*-} - 1)) $((redis_cluster_port + ${1##*-} + 9999))"; }
redis_sentinel_ports() {
    case $1 in
        *-watch) echo "$redis_sentinel_port" ;;
        *) echo "$((redis_pair_port + ${1##*-} - 1))" ;;
    esac
}

# at PORT COMMAND… ; a server that hangs must not hang the script.
at() {
    local port=$1
    shift
    timeout 5 redis-cli -h "$host" -p "$port" "$@" 2>/dev/null | tr -d '\r'
}

# While it reads its file back it answers LOADING.
redis_ready() { [[ $(at "$(port "$1")" ping) == PONG ]]; }
redis_cluster_ready() { redis_ready "$1"; }
redis_sentinel_ready() { redis_ready "$1"; }

# A write that was answered is on disk, as after a kill it has to be. Nothing is ever evicted: an online store that
# silently forgets is wrong, one that refuses a write is found out.
redis_common() {
    cat <<END
bind $host
port $(port "$1")
dir $(home "$1")/data
daemonize no
appendonly yes
appendfsync always
save ""
maxmemory 256mb
maxmemory-policy noeviction
databases 4
tcp-keepalive 60
END
}

redis_launch() {
    local home major minor subcommands=''
    home=$(home "$1")
    mkdir -p "$home/data"
    # An unknown subcommand in a rule is an error, and CLIENT SETINFO came with 7.2.
    IFS=. read -r major minor _ < <(redis-server --version | sed 's/.* v=\([0-9.]*\) .*/\1/')
    if ((major > 7 || (major == 7 && minor >= 2))); then subcommands='+client|setinfo'; fi
    redis_common "$1" >"$home/redis.conf"
    cat >>"$home/redis.conf" <<END
tls-port $redis_secure_port
tls-cert-file $certs/server.pem
tls-key-file $certs/server.key
tls-ca-cert-file $certs/ca.pem
tls-auth-clients no
user default on nopass ~* &* +@all
# What the online store needs, on its own keys: strings, scripts, and what clients say when they connect.
user $user on >$password ~fraudline:* resetchannels -@all +@string +del +unlink +exists +expire +pexpire +ttl +pttl +eval +evalsha +script|load +script|exists +ping +echo +info +client|setname +client|id $subcommands +select +hello +auth +quit
END
    launch "$1" redis-server "$home/redis.conf"
}

redis_cluster_launch() {
    local home
    home=$(home "$1")
    mkdir -p "$home/data"
    redis_common "$1" | sed '/^databases/d' >"$home/redis.conf"
    cat >>"$home/redis.conf" <<END
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 2000
cluster-announce-ip $host
END
    launch "$1" redis-server "$home/redis.conf"
}

# The slots are dealt out once, when all three are there; after that the nodes find each other again.
redis_cluster_settle() {
    local node deadline first=$redis_cluster_port log=$root/redis-cluster.log
    for node in 1 2 3; do
        if ! running "redis-cluster-$node"; then return 0; fi
    done
    if at "$first" cluster info | grep -x 'cluster_slots_assigned:0' >/dev/null; then
        redis-cli --cluster create "$host:$first" "$host:$((first + 1))" "$host:$((first + 2))" --cluster-yes >"$log" 2>&1 || {
            tail -n 20 "$log" >&2
            die "the Redis cluster could not be made; ${0##*/} clean redis-cluster starts over"
        }
    fi
    deadline=$((SECONDS + 20))
    for node in 0 1 2; do
        until at $((first + node)) cluster info | grep -x 'cluster_state:ok' >/dev/null; do
            ((SECONDS < deadline)) || die "the Redis cluster is not whole after 20 s: redis-cli -p $first cluster nodes tells more"
            sleep 0.1
        done
    done
}

redis_sentinel_launch() {
    local name=$1 home
    home=$(home "$name")
    mkdir -p "$home/data"
    # Written once: after a failover the nodes keep the new roles in these files themselves.
    if [[ ! -s $home/redis.conf ]]; then
        case $name in
            *-1) redis_common "$name" ;;
            *-2)
                redis_common "$name"
                echo "replicaof $host $redis_pair_port"
                ;;
            *-watch)
                cat <<END
bind $host
port $redis_sentinel_port
dir $home/data
sentinel monitor fraudline $host $redis_pair_port 1
sentinel down-after-milliseconds fraudline 1000
sentinel failover-timeout fraudline 5000
END
                ;;
        esac >"$home/redis.conf.new"
        mv "$home/redis.conf.new" "$home/redis.conf"
    fi
    case $name in
        *-watch) launch "$name" redis-server "$home/redis.conf" --sentinel ;;
        *) launch "$name" redis-server "$home/redis.conf" ;;
    esac
}

# A failover needs a replica that has the data and that Sentinel takes for reachable. After an earlier failover the
# returning node is a master for some ten seconds, until Sentinel makes it a replica.
redis_sentinel_settle() {
    local node deadline=$((SECONDS + 45))
    for node in 1 2 watch; do
        if ! running "redis-sentinel-$node"; then return 0; fi
    done
    until { at "$redis_pair_port" info replication && at $((redis_pair_port + 1)) info replication; } |
        grep -x 'master_link_status:up' >/dev/null &&
        at "$redis_sentinel_port" sentinel replicas fraudline | grep -A 1 '^flags$' | grep -x slave >/dev/null; do
        ((SECONDS < deadline)) ||
            die "Sentinel has no replica after 45 s: redis-cli -p $redis_sentinel_port sentinel replicas fraudline tells more"
        sleep 0.2
    done
}
