output "arn" {
  description = "ARN of the cluster."
  value       = aws_msk_cluster.this.arn
}

output "cluster_name" {
  description = "Name of the cluster, as its metrics have it."
  value       = aws_msk_cluster.this.cluster_name
}

output "bootstrap_brokers_sasl_scram" {
  description = "Brokers, host:port separated by commas, for TLS with SASL/SCRAM."
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_scram
}

output "scram_username" {
  description = "Name that fraudline logs in under."
  value       = var.scram_username
}

output "scram_secret_arn" {
  description = "Secret with the login, as JSON: username and password."
  value       = aws_secretsmanager_secret.scram.arn
}

output "replication_factor" {
  description = "Replicas of each partition."
  value       = var.replication_factor
}
