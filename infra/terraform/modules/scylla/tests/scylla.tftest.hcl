mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_network_interface" {
    defaults = { private_ip = "10.40.0.7" }
  }
}

variables {
  name                      = "test"
  environment               = "production"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids = { kubernetes = "sg-1" }
  ami_id                    = "ami-0123456789abcdef0"
  certificate_secret_arn    = "arn:aws:secretsmanager:us-east-1:123456789012:secret:scylla"
  kms_key_arn               = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "secured_and_spread" {
  assert {
    condition     = length(aws_instance.this) == 3 && length(distinct(aws_network_interface.this[*].subnet_id)) == 3
    error_message = "Each zone needs a node."
  }
  assert {
    condition     = jsondecode(aws_instance.this[0].user_data).scylla_yaml.client_encryption_options.enabled && jsondecode(aws_instance.this[0].user_data).scylla_yaml.server_encryption_options.internode_encryption == "all"
    error_message = "Clients and nodes must talk over TLS."
  }
  assert {
    condition     = jsondecode(aws_instance.this[0].user_data).scylla_yaml.authenticator == "PasswordAuthenticator"
    error_message = "Clients must log in."
  }
  assert {
    condition     = alltrue([for instance in aws_instance.this : instance.metadata_options[0].http_tokens == "required" && tobool(instance.root_block_device[0].encrypted)])
    error_message = "Instances need encrypted disks, and tokens at the metadata service."
  }
  assert {
    condition     = output.store.cql.hosts == ["10.40.0.7:9142", "10.40.0.7:9142", "10.40.0.7:9142"] && output.store.cql.ca_certificate != null
    error_message = "fraudline must be told of the nodes, over TLS."
  }
}

run "development_may_do_with_one" {
  variables {
    environment = "development"
    node_count  = 1
  }
  assert {
    condition     = length(aws_instance.this) == 1
    error_message = "One node was asked for."
  }
}

run "refuses_two_nodes_in_production" {
  command = plan
  variables {
    node_count = 2
  }
  expect_failures = [var.node_count]
}

run "refuses_instances_without_disks_and_what_is_no_image" {
  command = plan
  variables {
    instance_type = "m7g.large"
    ami_id        = "scylla"
    environment   = "staging"
  }
  expect_failures = [var.instance_type, var.ami_id, var.environment]
}
