output "cluster_name" {
  description = "Name of the cluster."
  value       = aws_eks_cluster.this.name
}

output "node_security_group_id" {
  description = "Security group of the nodes, and so of the pods."
  value       = aws_security_group.nodes.id
}

output "models_role_arn" {
  description = "Role of the driver that mounts the models."
  value       = aws_iam_role.models.arn
}

output "has_gpu" {
  description = "Whether there are nodes with GPUs."
  value       = var.gpu != null
}
