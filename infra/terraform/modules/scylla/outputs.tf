output "hosts" {
  description = "Nodes, host:port, for CQL over TLS."
  value       = [for interface in aws_network_interface.this : "${interface.private_ip}:${local.ports.cql}"]
}

output "store" {
  description = "The store as fraudline's configuration has it, without the password."
  value = {
    cql = {
      hosts          = [for interface in aws_network_interface.this : "${interface.private_ip}:${local.ports.cql}"]
      keyspace       = "fraudline"
      username       = "fraudline"
      ca_certificate = "/etc/fraudline/credentials/store-ca.pem"
    }
  }
}
