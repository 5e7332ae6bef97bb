# Apache Kafka in KRaft mode: one node (kafka) and a cluster of three (kafka3), broker and controller in one process each.
# shellcheck shell=bash disable=SC2154

kafka_version=4.3.0
kafka_port=${FRAUDLINE_LOCAL_KAFKA_PORT:-19092}
kafka_secure_port=${FRAUDLINE_LOCAL_KAFKA_SECURE_PORT:-19093}
kafka_controller_port=${FRAUDLINE_LOCAL_KAFKA_CONTROLLER_PORT:-19091}
kafka_heap=${FRAUDLINE_LOCAL_KAFKA_HEAP:-512m}
# The three nodes take this port and the two after it, their controllers the same plus 100.
kafka3_port=${FRAUDLINE_LOCAL_KAFKA3_PORT:-19192}
kafka3_heap=${FRAUDLINE_LOCAL_KAFKA3_HEAP:-384m}
kafka_lib=$cache/kafka-$kafka_version

kafka_install() {
    need_java Kafka 17 99
    fetch_jars "kafka-$kafka_version" \
        "org.apache.kafka:kafka_2.13:$kafka_version" "org.apache.kafka:kafka-tools:$kafka_version" \
        org.apache.logging.log4j:log4j-slf4j-impl:2.24.3 org.apache.logging.log4j:log4j-core:2.24.3
}
kafka3_install() { kafka_install; }

kafka_ports() { echo "$kafka_port $kafka_secure_port $kafka_controller_port"; }
kafka3_ports() { echo "$((kafka3_port + ${1##*-} - 1)) $((kafka3_port + ${1##*-} + 99))"; }

# The line comes once the broker is registered, has caught up with the metadata and takes requests.
kafka_ready() { grep -q 'Kafka Server started' "$(home "$1")/log" 2>/dev/null && port_open "$(port "$1")"; }
kafka3_ready() { kafka_ready "$1"; }

kafka_launch() {
    local home
    home=$(home kafka)
    mkdir -p "$home"
    kafka_properties kafka 1 "1@$host:$kafka_controller_port" 1 1 >"$home/server.properties"
    cat >>"$home/server.properties" <<END
listeners=PLAINTEXT://$host:$kafka_port,SASL_SSL://$host:$kafka_secure_port,CONTROLLER://$host:$kafka_controller_port
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$user="$password";
ssl.keystore.type=PKCS12
ssl.keystore.location=$certs/server.p12
ssl.keystore.password=$store_password
ssl.client.auth=none
END
    kafka_format kafka --add-scram "SCRAM-SHA-256=[name=$user,password=$password]" \
        --add-scram "SCRAM-SHA-512=[name=$user,password=$password]"
    kafka_run kafka "$kafka_heap"
}

kafka3_launch() {
    local name=$1 id=${1##*-} home
    home=$(home "$name")
    mkdir -p "$home"
    kafka_properties "$name" "$id" \
        "1@$host:$((kafka3_port + 100)),2@$host:$((kafka3_port + 101)),3@$host:$((kafka3_port + 102))" 3 2 >"$home/server.properties"
    cat >>"$home/server.properties" <<END
listeners=PLAINTEXT://$host:$((kafka3_port + id - 1)),CONTROLLER://$host:$((kafka3_port + id + 99))
# A killed node loses its partitions to the others after this, not after 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
END
    kafka_format "$name"
    kafka_run "$name" "$kafka3_heap"
}

# kafka_properties NAME ID VOTERS REPLICAS MIN_ISR
kafka_properties() {
    cat <<END
process.roles=broker,controller
node.id=$2
controller.quorum.voters=$3
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
log.dirs=$(home "$1")/data
# A misspelt topic is an error, as in production.
auto.create.topics.enable=false
default.replication.factor=$4
min.insync.replicas=$5
offsets.topic.replication.factor=$4
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=$4
transaction.state.log.min.isr=$5
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=$4
share.coordinator.state.topic.min.isr=$5
share.coordinator.state.topic.num.partitions=8
# Tests wait for groups to form, for lost members and for abandoned transactions: the defaults are 3 s, 6 s and 10 s.
group.initial.rebalance.delay.ms=0
# A starved machine must not fence its only broker; the next one after a kill -9 may register only when this session has ended.
broker.session.timeout.ms=30000
initial.broker.registration.timeout.ms=120000
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# They delete many topics, too.
log.segment.delete.delay.ms=1000
# 128 MB of heap by default.
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4
END
}

# kafka_format NAME ARGS… : once; one that was interrupted is done again.
kafka_format() {
    local home cluster=${1%-*}
    home=$(home "$1")
    if [[ -e $home/formatted ]]; then return; fi
    rm -rf "$home/data"
    # Nodes of one cluster have its id in common: 16 bytes, URL-safe base64. A leading '-' would be taken for an option.
    if [[ ! -s $root/$cluster.id ]]; then
        echo "f$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 2-21)w" >"$root/$cluster.id"
    fi
    "$java" -Xmx128m -cp "$kafka_lib/*" kafka.tools.StorageTool format -t "$(cat "$root/$cluster.id")" \
        -c "$home/server.properties" "${@:2}" >"$home/format.log" 2>&1 9>&- || {
        tail -n 20 "$home/format.log" >&2
        die "the data folder of $1 could not be formatted; ${0##*/} clean $1 starts over"
    }
    touch "$home/formatted"
}

# kafka_run NAME HEAP
kafka_run() {
    local home
    home=$(home "$1")
    cat >"$home/log4j2.properties" <<'END'
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
END
    launch "$1" "$java" "-Xms128m" "-Xmx$2" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
        "-Dlog4j2.configurationFile=$home/log4j2.properties" -cp "$kafka_lib/*" kafka.Kafka "$home/server.properties"
}
