# Apache Cassandra, a single node. It stands in for ScyllaDB, which speaks the same protocol and comes in containers only.
# shellcheck shell=bash disable=SC2154

cassandra_version=5.0.8
cassandra_port=${FRAUDLINE_LOCAL_CASSANDRA_PORT:-19042}
cassandra_storage_port=${FRAUDLINE_LOCAL_CASSANDRA_STORAGE_PORT:-17000}
cassandra_heap=${FRAUDLINE_LOCAL_CASSANDRA_HEAP:-512m}
cassandra_lib=$cache/cassandra-$cassandra_version

cassandra_install() {
    need_java Cassandra 17 17
    fetch_jars "cassandra-$cassandra_version" "org.apache.cassandra:cassandra-all:$cassandra_version"
}

cassandra_ports() { echo "$cassandra_port $cassandra_storage_port"; }

# The port opens before the first superuser is written; cassandra_settle waits for that.
cassandra_ready() {
    grep -q 'Starting listening for CQL clients' "$(home "$1")/log" 2>/dev/null && port_open "$cassandra_port"
}

# Once per data folder. The program tries until the superuser can log in.
cassandra_settle() {
    local home
    home=$(home cassandra)
    if [[ -e $home/role-created ]]; then return; fi
    "$java" -Xmx96m -Dlevel=WARN -cp "$home/conf:$cassandra_lib/*" "$here/lib/Cql.java" "$host" "$cassandra_port" cassandra cassandra \
        "CREATE ROLE IF NOT EXISTS $user WITH LOGIN = true AND PASSWORD = '$password'" \
        "GRANT ALL PERMISSIONS ON ALL KEYSPACES TO $user" >"$home/role.log" 2>&1 9>&- || {
        tail -n 20 "$home/role.log" >&2
        die "the role $user could not be created (the reason is above; it takes a JDK, not a JRE); 'start cassandra' tries again"
    }
    touch "$home/role-created"
}

cassandra_launch() {
    local home package
    local -a open=()
    home=$(home cassandra)
    mkdir -p "$home/conf" "$home/data"
    cassandra_yaml "$home" >"$home/conf/cassandra.yaml"
    cat >"$home/conf/logback.xml" <<'END'
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level [%thread] %date{ISO8601} %F:%L - %msg%n</pattern></encoder>
  </appender>
  <root level="${level:-INFO}"><appender-ref ref="OUT"/></root>
</configuration>
END
    for package in java.base/{java.io,java.lang,java.lang.module,java.lang.reflect,java.lang.ref,java.math,java.net} \
        java.base/{java.nio,java.nio.charset,java.nio.file.spi,java.util,java.util.concurrent,java.util.concurrent.atomic} \
        java.base/jdk.internal.{loader,misc,ref,reflect,math,module,util.jar} java.base/sun.nio.ch \
        java.management/com.sun.jmx.remote.security java.management.rmi/com.sun.jmx.remote.internal.rmi \
        jdk.management/com.sun.management{,.internal} java.rmi/sun.rmi.{registry,server,transport.tcp} java.sql/java.sql \
        jdk.naming.dns/com.sun.jndi.dns jdk.attach/sun.tools.attach; do
        open+=(--add-opens "$package=ALL-UNNAMED" --add-exports "$package=ALL-UNNAMED")
    done
    launch cassandra "$java" "${open[@]}" -Xms128m "-Xmx$cassandra_heap" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError -Xss512k \
        "-javaagent:$cassandra_lib/jamm-0.4.0.jar" -Djdk.attach.allowAttachSelf=true -Djava.awt.headless=true \
        "-Dcassandra.config=file://$home/conf/cassandra.yaml" "-Dcassandra.storagedir=$home/data" -Dcassandra-foreground=yes \
        "-Djava.io.tmpdir=$home" -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.superuser_setup_delay_ms=0 \
        -Dcassandra.ring_delay_ms=100 -Dcassandra.shutdown_announce_in_ms=0 \
        -cp "$home/conf:$cassandra_lib/*" org.apache.cassandra.service.CassandraDaemon
}

cassandra_yaml() {
    cat <<END
cluster_name: fraudline
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
num_tokens: 1
auto_bootstrap: false
endpoint_snitch: SimpleSnitch
listen_address: $host
rpc_address: $host
storage_port: $cassandra_storage_port
native_transport_port: $cassandra_port
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "$host:$cassandra_storage_port"

authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
# A changed role shows at once, or nearly.
roles_validity: 1s
permissions_validity: 1s
credentials_validity: 1s

# One port for plain and TLS connections.
client_encryption_options:
  enabled: true
  optional: true
  require_client_auth: false
  keystore: $certs/server.p12
  keystore_password: $store_password
  store_type: PKCS12

# A write that was answered survives a kill.
commitlog_sync: batch
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
# No snapshot of what a test drops.
auto_snapshot: false

memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
key_cache_size: 8MiB
file_cache_size: 32MiB
networking_cache_size: 32MiB
concurrent_reads: 8
concurrent_writes: 16
concurrent_counter_writes: 2
concurrent_compactors: 1
# The machine may be busy with a build.
read_request_timeout: 10s
write_request_timeout: 10s
END
}
