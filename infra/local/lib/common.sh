# Folders, processes, ports, downloads: what every service shares.
# shellcheck shell=bash disable=SC2034,SC2154

host=127.0.0.1
user=fraudline
password=fraudline-secret
repository=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fraudline/services
root=${FRAUDLINE_LOCAL_DIR:-${CARGO_TARGET_DIR:-$repository/target}/services}
# Every service writes its own paths into its configuration and runs in its own folder.
root=$(realpath -m "$root")
certs=$root/certs
start_timeout=${FRAUDLINE_LOCAL_START_TIMEOUT:-120}
stop_timeout=${FRAUDLINE_LOCAL_STOP_TIMEOUT:-20}

note() { echo "$*" >&2; }

die() {
    note "error: $*"
    exit 1
}

milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# One command at a time per folder: two that start the same service would fight over its port and data.
lock() {
    # The services' configuration formats each have their own idea of quoting.
    [[ $root$cache =~ ^[[:alnum:]/_.+@~-]+$ ]] ||
        die "the folders $root and $cache may hold letters, digits and /_.+@~- only: set FRAUDLINE_LOCAL_DIR, XDG_CACHE_HOME"
    command -v flock >/dev/null || die "flock is missing (Debian package util-linux)"
    mkdir -p "$root"
    exec 9>"$root/lock"
    flock -n 9 && return
    note "waiting for another run of this script on $root"
    flock -w 600 9 || die "another run still holds $root/lock after 10 minutes"
}

# Everything of one process, data included, lies in its folder.
home() { echo "$root/$1"; }

port() {
    local ports
    ports=$("$(kind "$1")_ports" "$1")
    echo "${ports%% *}"
}

address() { echo "$host:$(port "$1")"; }

# State and start time of a process. Together with the start time a pid is not mistaken for that of a later process.
process_stat() {
    local line
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The second field, the command's name, may hold spaces.
    set -- ${line##*) }
    [[ $1 != Z && $1 != X ]] || return 1
    echo "${20}"
}

pid_of() {
    local pid began
    { read -r pid began <"$root/$1/pid"; } 2>/dev/null || return 1
    [[ $(process_stat "$pid" || true) == "$began" ]] || return 1
    echo "$pid"
}

running() { pid_of "$1" >/dev/null; }

port_open() { (exec 3<>"/dev/tcp/$host/$1") 2>/dev/null; }

check_ports_free() {
    local name=$1 port owner
    shift
    for port; do
        if ! port_open "$port"; then continue; fi
        owner=$(ss -Hltnp "sport = :$port" 2>/dev/null | grep -o 'users:.*' | head -n 1 || true)
        die "$name needs port $port, which another process has${owner:+ ($owner)}: stop that one, or set another port" \
            "(FRAUDLINE_LOCAL_…_PORT, see README.md)"
    done
}

# launch NAME COMMAND… : in a session of its own, so that it outlives this script and the terminal.
launch() {
    local name=$1 home pid
    shift
    home=$(home "$name")
    mkdir -p "$home"
    if [[ -e $home/log ]]; then mv "$home/log" "$home/log.previous"; fi
    # 9 is the lock, which must not live on in the service.
    (cd "$home" && exec setsid "$@") >"$home/log" 2>&1 </dev/null 9>&- &
    pid=$!
    echo "$pid $(process_stat "$pid" || echo gone)" >"$home/pid"
}

# wait_ready NAME… : notes in began and took, which are start's, how long each one needed.
wait_ready() {
    local name deadline=$(($(milliseconds) + start_timeout * 1000))
    local -a pending
    while true; do
        pending=()
        for name; do
            # In this order: who answers must be the one that was started.
            if "$(kind "$name")_ready" "$name" && running "$name"; then
                if [[ -n ${began[$name]:-} && -z ${took[$name]:-} ]]; then took[$name]=$(($(milliseconds) - began[$name])); fi
            else
                running "$name" || fail_start "$name" "died during start"
                pending+=("$name")
            fi
        done
        ((${#pending[@]} > 0)) || return 0
        set -- "${pending[@]}"
        (($(milliseconds) < deadline)) || fail_start "$1" "runs, but does not answer after $start_timeout s"
        sleep 0.2
    done
}

fail_start() {
    local log
    log=$(home "$1")/log
    note "--- last lines of $log"
    tail -n 20 "$log" >&2 || true
    die "$1 $2"
}

report_start() {
    local elapsed=${took[$1]:-}
    if [[ -n $elapsed ]]; then
        printf '%-22s %-18s %d.%d s\n' "$1" "$(address "$1")" $((elapsed / 1000)) $((elapsed % 1000 / 100))
    else
        printf '%-22s %-18s ran already\n' "$1" "$(address "$1")"
    fi
}

# FRAUDLINE_LOCAL_JAVA_HOME comes first: Cassandra runs on Java 17 only, which need not be what the rest of a machine uses.
java_home=${FRAUDLINE_LOCAL_JAVA_HOME:-${JAVA_HOME:-}}
java=${java_home:+$java_home/bin/}java

java_version() { "$java" -version 2>&1 | sed -n 's/^[a-z]* version "\([0-9]*\).*/\1/p'; }

need_java() {
    local what=$1 low=$2 high=$3 version
    command -v "$java" >/dev/null ||
        die "$what needs Java and '$java' is missing: apt-get install openjdk-17-jdk-headless, or set FRAUDLINE_LOCAL_JAVA_HOME"
    version=$(java_version)
    ((version >= low && version <= high)) ||
        die "$what needs Java 17, and '$java' is ${version:-of an unknown version}: set FRAUDLINE_LOCAL_JAVA_HOME"
}

# fetch_jars FOLDER GROUP:ARTIFACT:VERSION… : with all they depend on, into FOLDER of the cache.
fetch_jars() {
    local target=$cache/$1 coordinate group artifact version work mvn began
    shift
    if [[ -d $target ]]; then return; fi
    command -v mvn >/dev/null || die "the download needs Maven: apt-get install maven"
    mkdir -p "$cache"
    # Renamed when it is whole: an interrupted download is not taken for one.
    work=$(mktemp -d "$cache/download.XXXXXX")
    {
        echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        echo '<groupId>fraudline</groupId><artifactId>services</artifactId><version>1</version><packaging>pom</packaging>'
        echo '<dependencies>'
        for coordinate; do
            IFS=: read -r group artifact version <<<"$coordinate"
            echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
        done
        echo '</dependencies></project>'
    } >"$work/pom.xml"
    note "downloading ${target##*/} from Maven Central into $cache"
    (cd "$work" && exec mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=lib) \
        >"$work/log" 2>&1 9>&- &
    mvn=$!
    # shellcheck disable=SC2064
    trap "kill $mvn 2>/dev/null; rm -rf '$work'" EXIT
    began=$SECONDS
    while process_stat "$mvn" >/dev/null; do
        sleep 0.5
        if (((SECONDS - began) >= 10 && (SECONDS - began) % 10 == 0)); then
            note "  $((SECONDS - began)) s"
            sleep 1
        fi
    done
    if ! wait "$mvn"; then
        tail -n 20 "$work/log" >&2
        die "Maven could not download ${target##*/}: its last lines are above; it needs Maven Central, or a mirror in ~/.m2/settings.xml"
    fi
    # Another clone may have been quicker.
    mv -T "$work/lib" "$target" 2>/dev/null || [[ -d $target ]]
    rm -rf "$work"
    trap - EXIT
}
