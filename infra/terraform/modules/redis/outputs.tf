output "replication_group_id" {
  description = "Id of the replication group."
  value       = aws_elasticache_replication_group.this.id
}

output "member_clusters" {
  description = "Ids of the nodes, as their metrics have them."
  value       = aws_elasticache_replication_group.this.member_clusters
}

output "replication_group_configuration_endpoint_address" {
  description = "Where a cluster client begins."
  value       = aws_elasticache_replication_group.this.configuration_endpoint_address
}

output "replication_group_port" {
  description = "Port of every node."
  value       = 6379
}

output "secret_arn" {
  description = "Secret with the password, as plain text."
  value       = aws_secretsmanager_secret.auth.arn
}

output "store" {
  description = "The store as fraudline's configuration has it, without the password."
  value = {
    redis = {
      mode = "cluster"
      urls = ["rediss://${aws_elasticache_replication_group.this.configuration_endpoint_address}:6379"]
    }
  }
}
