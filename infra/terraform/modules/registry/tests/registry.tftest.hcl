mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::test-models" }
  }
}

variables {
  name        = "test"
  kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "private_versioned_encrypted" {
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "The bucket must be private in all four ways."
  }
  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "An alias that was overwritten must be there still."
  }
  assert {
    condition     = alltrue([for rule in aws_s3_bucket_server_side_encryption_configuration.this.rule : rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms"])
    error_message = "Models must be encrypted with the deployment's key."
  }
  assert {
    condition     = aws_s3_bucket.this.bucket == "test-models-123456789012" && !aws_s3_bucket.this.force_destroy
    error_message = "The bucket's name must be the account's own, and a destroy must not take models along."
  }
}

run "refuses_a_public_bucket" {
  command = plan
  variables {
    block_public_access = false
  }
  expect_failures = [var.block_public_access]
}

run "refuses_what_is_no_name" {
  command = plan
  variables {
    name = "Not_A_Bucket"
  }
  expect_failures = [var.name]
}
