output "helm_values" {
  description = "Values for the chart: terraform output -raw helm_values > values.yaml."
  value       = module.fraudline.helm_values
}

output "cluster_name" {
  description = "The Kubernetes cluster: aws eks update-kubeconfig --name THIS."
  value       = module.fraudline.cluster_name
}

output "kafka_secret_arn" {
  description = "Secret with the Kafka login, as JSON: username and password."
  value       = module.fraudline.kafka_secret_arn
}

output "store_secret_arn" {
  description = "Secret with the password of the online store."
  value       = module.fraudline.store_secret_arn
}

output "models_bucket" {
  description = "Bucket of the model registry."
  value       = module.fraudline.models_bucket
}

output "models_role_arn" {
  description = "Role of the driver that mounts the models."
  value       = module.fraudline.models_role_arn
}
