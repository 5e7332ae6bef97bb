mock_provider "aws" {
  mock_resource "aws_elasticache_replication_group" {
    defaults = { configuration_endpoint_address = "clustercfg.test" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:test-redis" }
  }
  mock_data "aws_secretsmanager_random_password" {
    defaults = { random_password = "0123456789abcdef0123456789abcdef01234567" }
  }
}

variables {
  name                      = "test"
  environment               = "production"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids = { kubernetes = "sg-1" }
  kms_key_arn               = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "secured_and_replicated" {
  assert {
    condition     = aws_elasticache_replication_group.this.transit_encryption_enabled && tobool(aws_elasticache_replication_group.this.at_rest_encryption_enabled)
    error_message = "States must be encrypted on the way and at rest."
  }
  assert {
    condition     = aws_elasticache_replication_group.this.auth_token == aws_secretsmanager_secret_version.auth.secret_string
    error_message = "The password must be the secret's."
  }
  assert {
    condition     = aws_elasticache_replication_group.this.multi_az_enabled && aws_elasticache_replication_group.this.automatic_failover_enabled
    error_message = "A shard must survive its zone."
  }
  assert {
    condition     = contains([for parameter in aws_elasticache_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"], "maxmemory-policy=noeviction")
    error_message = "No state may be evicted."
  }
  assert {
    condition     = output.store.redis.urls == ["rediss://clustercfg.test:6379"] && output.store.redis.mode == "cluster"
    error_message = "fraudline must be told of the cluster, over TLS."
  }
}

run "development_may_do_without_replicas" {
  variables {
    environment             = "development"
    replicas_per_node_group = 0
  }
  assert {
    condition     = !aws_elasticache_replication_group.this.multi_az_enabled
    error_message = "Without replicas there is nothing in another zone."
  }
}

run "refuses_no_replica_in_production" {
  command = plan
  variables {
    replicas_per_node_group = 0
  }
  expect_failures = [var.replicas_per_node_group]
}

run "refuses_an_unencrypted_listener" {
  command = plan
  variables {
    transit_encryption_enabled = false
  }
  expect_failures = [var.transit_encryption_enabled]
}

run "refuses_what_is_no_name_node_or_environment" {
  command = plan
  variables {
    name            = "Not_A_Name"
    node_type       = "r7g.large"
    num_node_groups = 0
    environment     = "staging"
  }
  expect_failures = [var.name, var.node_type, var.num_node_groups, var.environment]
}
