output "helm_values" {
  description = "Values for the chart: terraform output -raw helm_values > values.yaml."
  value       = yamlencode(local.helm_values)
}

output "cluster_name" {
  description = "The Kubernetes cluster: aws eks update-kubeconfig --name THIS."
  value       = module.kubernetes.cluster_name
}

output "kafka_secret_arn" {
  description = "Secret with the Kafka login, as JSON: username and password."
  value       = module.kafka.scram_secret_arn
}

output "store_secret_arn" {
  description = "Secret with the password of the online store; of ScyllaDB, whose logins are made in it, none."
  value       = one(module.redis[*].secret_arn)
}

output "models_bucket" {
  description = "Bucket of the model registry."
  value       = module.registry.s3_bucket_id
}

output "models_publish_policy_arn" {
  description = "Policy of those who publish models and promote them."
  value       = module.registry.publish_policy_arn
}

output "models_role_arn" {
  description = "Role of the driver that mounts the models."
  value       = module.kubernetes.models_role_arn
}

output "alarm_topic_arn" {
  description = "SNS topic that the alarms of brokers and store go to."
  value       = module.alarms.topic_arn
}
