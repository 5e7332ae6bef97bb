output "s3_bucket_id" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "s3_bucket_arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.this.arn
}

output "read_policy_arn" {
  description = "Policy of those who serve models."
  value       = aws_iam_policy.read.arn
}

output "publish_policy_arn" {
  description = "Policy of those who publish models and promote them."
  value       = aws_iam_policy.publish.arn
}
