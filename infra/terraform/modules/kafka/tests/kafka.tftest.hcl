mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:kafka" }
  }
  mock_resource "aws_msk_configuration" {
    defaults = { arn = "arn:aws:kafka:us-east-1:123456789012:configuration/test/1", latest_revision = 1 }
  }
  mock_resource "aws_msk_cluster" {
    defaults = { arn = "arn:aws:kafka:us-east-1:123456789012:cluster/test/1", bootstrap_brokers_sasl_scram = "b-1:9096" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:AmazonMSK_test" }
  }
}

variables {
  name                       = "test"
  environment                = "production"
  vpc_id                     = "vpc-1"
  broker_node_client_subnets = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids  = { kubernetes = "sg-1" }
  kms_key_arn                = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "what_exactly_once_needs" {
  assert {
    condition = alltrue([for line in [
      "default.replication.factor=3", "min.insync.replicas=2", "transaction.state.log.replication.factor=3",
      "transaction.state.log.min.isr=2", "offsets.topic.replication.factor=3", "unclean.leader.election.enable=false",
      "auto.create.topics.enable=false",
    ] : contains(split("\n", aws_msk_configuration.this.server_properties), line)])
    error_message = "The brokers' configuration lacks a setting: ${aws_msk_configuration.this.server_properties}"
  }
  assert {
    condition     = aws_msk_cluster.this.encryption_info[0].encryption_in_transit[0].client_broker == "TLS" && aws_msk_cluster.this.encryption_info[0].encryption_in_transit[0].in_cluster
    error_message = "Records must travel over TLS, between brokers too."
  }
  assert {
    condition     = aws_msk_cluster.this.client_authentication[0].sasl[0].scram && !aws_msk_cluster.this.client_authentication[0].unauthenticated
    error_message = "Clients must log in."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.scram["kubernetes"].from_port == 9096 && aws_vpc_security_group_ingress_rule.scram["kubernetes"].to_port == 9096
    error_message = "Clients reach the one port that asks for TLS and a login."
  }
  assert {
    condition     = startswith(aws_secretsmanager_secret.scram.name, "AmazonMSK_")
    error_message = "MSK takes logins only under such names."
  }
}

run "development_may_do_with_two" {
  variables {
    environment                = "development"
    broker_node_client_subnets = ["subnet-a", "subnet-b"]
    number_of_broker_nodes     = 2
    replication_factor         = 2
    min_insync_replicas        = 1
  }
  assert {
    condition     = output.replication_factor == 2
    error_message = "The topics' replication must be what was asked for."
  }
}

run "refuses_two_replicas_in_production" {
  command = plan
  variables {
    replication_factor = 2
  }
  expect_failures = [var.replication_factor]
}

run "refuses_one_acknowledgement_in_production" {
  command = plan
  variables {
    min_insync_replicas = 1
  }
  expect_failures = [var.min_insync_replicas]
}

run "refuses_one_replica_anywhere" {
  command = plan
  variables {
    environment         = "development"
    replication_factor  = 1
    min_insync_replicas = 0
  }
  expect_failures = [var.replication_factor]
}

run "refuses_writes_that_need_every_replica" {
  command = plan
  variables {
    min_insync_replicas = 3
  }
  expect_failures = [var.min_insync_replicas]
}

run "refuses_an_unencrypted_listener" {
  command = plan
  variables {
    encryption_in_transit_client_broker = "TLS_PLAINTEXT"
  }
  expect_failures = [var.encryption_in_transit_client_broker]
}

run "refuses_brokers_that_do_not_spread" {
  command = plan
  variables {
    number_of_broker_nodes = 4
  }
  expect_failures = [aws_msk_cluster.this]
}

run "refuses_fewer_brokers_than_replicas" {
  command = plan
  variables {
    broker_node_client_subnets = ["subnet-a", "subnet-b"]
    number_of_broker_nodes     = 2
  }
  expect_failures = [aws_msk_cluster.this]
}

run "refuses_one_zone" {
  command = plan
  variables {
    broker_node_client_subnets = ["subnet-a"]
  }
  expect_failures = [var.broker_node_client_subnets]
}

run "refuses_what_is_no_environment" {
  command = plan
  variables {
    environment = "staging"
  }
  expect_failures = [var.environment]
}

run "refuses_what_is_no_version" {
  command = plan
  variables {
    kafka_version = "2.8.1"
  }
  expect_failures = [var.kafka_version]
}

run "refuses_what_is_no_broker_or_disk" {
  command = plan
  variables {
    broker_node_instance_type = "m7g.large"
    broker_node_storage_gib   = 1
    log_retention_days        = 1
  }
  expect_failures = [var.broker_node_instance_type, var.broker_node_storage_gib, var.log_retention_days]
}
