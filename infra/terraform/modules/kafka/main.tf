# Amazon MSK: TLS only, SASL/SCRAM logins, encrypted at rest, and the broker settings that exactly-once stands on.

locals {
  server_properties = {
    # fraudline creates its topics with settings of their own; a typing error must not make another one.
    "auto.create.topics.enable"  = "false"
    "default.replication.factor" = var.replication_factor
    "min.insync.replicas"        = var.min_insync_replicas
    # Offsets and the states of transactions are as precious as the records: losing them would score events twice.
    "offsets.topic.replication.factor"         = var.replication_factor
    "transaction.state.log.replication.factor" = var.replication_factor
    "transaction.state.log.min.isr"            = var.min_insync_replicas
    # A replica that lacks acknowledged records never becomes a leader: lag is better than loss.
    "unclean.leader.election.enable" = "false"
    # The scorer asks for 120 s (kafka.session_timeout) and its transactions for 15 s (kafka.transaction_timeout).
    "group.max.session.timeout.ms" = "300000"
    "transaction.max.timeout.ms"   = "900000"
  }
}

resource "aws_security_group" "this" {
  name        = "${var.name}-kafka"
  description = "Kafka brokers of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "scram" {
  for_each                     = var.client_security_group_ids
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = each.value
  description                  = "SASL/SCRAM over TLS from ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = 9096
  to_port                      = 9096
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/fraudline/${var.name}/kafka"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_msk_configuration" "this" {
  name              = var.name
  kafka_versions    = [var.kafka_version]
  server_properties = join("\n", [for name, value in local.server_properties : "${name}=${value}"])

  # A cluster moves to a new revision before the old one goes.
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_msk_cluster" "this" {
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = var.number_of_broker_nodes
  # What the alarms need. More of it costs by the metric, and the brokers' own exporters have it all (below).
  enhanced_monitoring = "DEFAULT"

  broker_node_group_info {
    instance_type   = var.broker_node_instance_type
    client_subnets  = var.broker_node_client_subnets
    security_groups = [aws_security_group.this.id]
    storage_info {
      ebs_storage_info {
        volume_size = var.broker_node_storage_gib
      }
    }
  }

  client_authentication {
    unauthenticated = false
    sasl {
      scram = true
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn
    encryption_in_transit {
      client_broker = var.encryption_in_transit_client_broker
      in_cluster    = true
    }
  }

  # What the brokers say of themselves, for the cluster's own Prometheus.
  open_monitoring {
    prometheus {
      jmx_exporter {
        enabled_in_broker = true
      }
      node_exporter {
        enabled_in_broker = true
      }
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.this.name
      }
    }
  }

  timeouts {
    create = "90m"
    update = "120m"
    delete = "60m"
  }

  lifecycle {
    precondition {
      condition     = var.number_of_broker_nodes % length(var.broker_node_client_subnets) == 0
      error_message = "number_of_broker_nodes must be a multiple of the subnets, so that each zone has as many."
    }
    precondition {
      condition     = var.number_of_broker_nodes >= var.replication_factor
      error_message = "number_of_broker_nodes must be replication_factor at least: each replica needs a broker of its own."
    }
  }
}

# MSK takes SCRAM logins from Secrets Manager only under such a name, and only encrypted with a key of one's own.
resource "aws_secretsmanager_secret" "scram" {
  # checkov:skip=CKV2_AWS_57:A rotation must reach the pods in the same minute; README.md describes it as a rolling restart.
  name                    = "AmazonMSK_${var.name}"
  description             = "Login of fraudline at the Kafka cluster ${var.name}"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.secret_recovery_days
}

data "aws_secretsmanager_random_password" "scram" {
  password_length     = 40
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret_version" "scram" {
  secret_id     = aws_secretsmanager_secret.scram.id
  secret_string = jsonencode({ username = var.scram_username, password = data.aws_secretsmanager_random_password.scram.random_password })

  # Each plan draws another password; the first one counts.
  lifecycle {
    ignore_changes = [secret_string]
  }
}

data "aws_iam_policy_document" "scram" {
  # checkov:skip=CKV_AWS_108:It lets one service read the one secret that was made for it.
  statement {
    actions   = ["secretsmanager:getSecretValue"]
    resources = [aws_secretsmanager_secret.scram.arn]
    principals {
      type        = "Service"
      identifiers = ["kafka.amazonaws.com"]
    }
  }
}

resource "aws_secretsmanager_secret_policy" "scram" {
  secret_arn = aws_secretsmanager_secret.scram.arn
  policy     = data.aws_iam_policy_document.scram.json
}

resource "aws_msk_scram_secret_association" "this" {
  cluster_arn     = aws_msk_cluster.this.arn
  secret_arn_list = [aws_secretsmanager_secret.scram.arn]
  depends_on      = [aws_secretsmanager_secret_version.scram, aws_secretsmanager_secret_policy.scram]
}
