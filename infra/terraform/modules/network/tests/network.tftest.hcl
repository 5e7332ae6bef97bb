mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"] }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:flow" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/flow" }
  }
}

variables {
  name        = "test"
  cidr        = "10.40.0.0/16"
  kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "three_zones" {
  assert {
    condition     = length(aws_subnet.private) == 3 && length(aws_subnet.public) == 3 && length(aws_nat_gateway.this) == 3
    error_message = "Each zone needs its own subnets and its own way out."
  }
  assert {
    condition     = length(distinct(concat(aws_subnet.private[*].cidr_block, aws_subnet.public[*].cidr_block))) == 6
    error_message = "Subnets must not share addresses."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.public : subnet.map_public_ip_on_launch != true])
    error_message = "Nothing gets a public address by itself."
  }
}

run "one_way_out" {
  variables {
    single_nat_gateway = true
    zone_count         = 2
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 2
    error_message = "Both zones go through the one NAT gateway."
  }
}

run "refuses_a_small_network" {
  command = plan
  variables {
    cidr = "10.40.0.0/24"
  }
  expect_failures = [var.cidr]
}

run "refuses_no_network" {
  command = plan
  variables {
    cidr = "ten/16"
  }
  expect_failures = [var.cidr]
}

run "refuses_one_zone" {
  command = plan
  variables {
    zone_count = 1
  }
  expect_failures = [var.zone_count]
}

run "refuses_short_logs" {
  command = plan
  variables {
    log_retention_days = 7
  }
  expect_failures = [var.log_retention_days]
}
