mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c"] }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_secretsmanager_random_password" {
    defaults = { random_password = "0123456789abcdef0123456789abcdef01234567" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:test" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/test" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/test" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/test" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { id = "models", arn = "arn:aws:s3:::models" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:test" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:test" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_network_interface" {
    defaults = { private_ip = "10.40.0.7" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = { identity = [{ oidc = [{ issuer = "https://oidc.test/id/1" }] }] }
  }
  mock_resource "aws_msk_configuration" {
    defaults = { arn = "arn:aws:kafka:us-east-1:123456789012:configuration/test/1", latest_revision = 1 }
  }
  mock_resource "aws_msk_cluster" {
    defaults = { arn = "arn:aws:kafka:us-east-1:123456789012:cluster/test/1", bootstrap_brokers_sasl_scram = "b-1:9096" }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = { configuration_endpoint_address = "clustercfg.test" }
  }
}

variables {
  name        = "test"
  environment = "production"
  topics      = { partitions = 24, retention = "45days" }
  scorer      = { replicas = 2, workers = 2 }
  image       = { repository = "registry.example.com/fraudline", tag = "0.1.0" }
}

run "values_follow_from_it" {
  assert {
    condition     = yamldecode(output.helm_values).config.kafka.brokers == "b-1:9096" && yamldecode(output.helm_values).config.kafka.sasl.mechanism == "SCRAM-SHA-512"
    error_message = "The chart must be told of the brokers, and of the login."
  }
  assert {
    condition     = yamldecode(output.helm_values).config.store.redis.urls == ["rediss://clustercfg.test:6379"]
    error_message = "The chart must be told of the store."
  }
  assert {
    condition     = yamldecode(output.helm_values).config.topics.replication_factor == 3
    error_message = "Topics must be replicated as the brokers are."
  }
  assert {
    condition     = !strcontains(output.helm_values, "0123456789abcdef") && !strcontains(output.helm_values, "password")
    error_message = "Values must not hold a password."
  }
}

run "scylla_in_its_place" {
  variables {
    store  = "scylla"
    scylla = { ami_id = "ami-0123456789abcdef0", certificate_secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:scylla" }
  }
  assert {
    condition     = length(yamldecode(output.helm_values).config.store.cql.hosts) == 3 && length(module.redis) == 0
    error_message = "The chart must be told of ScyllaDB's nodes, and there must be no Redis."
  }
}

run "refuses_more_workers_than_partitions" {
  command = plan
  variables {
    topics = { partitions = 3, retention = "45days" }
  }
  expect_failures = [var.topics]
}

run "refuses_two_zones_in_production" {
  command = plan
  variables {
    zone_count = 2
  }
  expect_failures = [var.zone_count]
}

run "refuses_to_throw_production_away" {
  command = plan
  variables {
    disposable = true
  }
  expect_failures = [var.disposable]
}

run "refuses_an_image_that_changes" {
  command = plan
  variables {
    image = { repository = "registry.example.com/fraudline", tag = "latest" }
  }
  expect_failures = [var.image]
}

run "refuses_scylla_without_an_image" {
  command = plan
  variables {
    store = "scylla"
  }
  expect_failures = [var.store]
}

run "refuses_what_is_no_store" {
  command = plan
  variables {
    store = "memcached"
  }
  expect_failures = [var.store]
}

run "refuses_what_is_no_name_or_environment" {
  command = plan
  variables {
    name               = "Not_A_Name"
    log_retention_days = 30
  }
  expect_failures = [var.name, var.log_retention_days]
}

run "refuses_what_is_no_environment" {
  command = plan
  variables {
    environment = "staging"
  }
  expect_failures = [var.environment]
}
