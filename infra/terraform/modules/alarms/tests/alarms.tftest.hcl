mock_provider "aws" {
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:test" }
  }
}

variables {
  name               = "test"
  kafka_cluster_name = "test"
  kms_key_arn        = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "brokers_and_nodes_are_watched" {
  variables {
    redis_member_clusters = ["test-0001-001", "test-0001-002"]
    emails                = ["on-call@example.com"]
  }
  assert {
    condition     = length(aws_cloudwatch_metric_alarm.this) == 3 + 2 * 2
    error_message = "Three alarms for the brokers, two for each node."
  }
  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : contains(alarm.alarm_actions, aws_sns_topic.this.arn)])
    error_message = "Somebody must be told of every alarm."
  }
  assert {
    condition     = keys(aws_sns_topic_subscription.email) == ["on-call@example.com"]
    error_message = "Everybody named must be told."
  }
}

run "refuses_what_is_no_address" {
  command = plan
  variables {
    emails = ["on-call"]
  }
  expect_failures = [var.emails]
}
