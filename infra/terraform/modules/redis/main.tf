# ElastiCache for Redis: cluster mode, TLS, a password, encrypted at rest, and no key is ever evicted.

resource "aws_security_group" "this" {
  name        = "${var.name}-redis"
  description = "Redis nodes of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "this" {
  for_each                     = var.client_security_group_ids
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = each.value
  description                  = "Redis over TLS from ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
}

resource "aws_elasticache_subnet_group" "this" {
  name       = var.name
  subnet_ids = var.subnet_ids
}

resource "aws_elasticache_parameter_group" "this" {
  name   = "${var.name}-cluster-on"
  family = "redis7"

  parameter {
    name  = "cluster-enabled"
    value = "yes"
  }

  # A state that was dropped to make room would be a card that never paid before. A full store pauses the scorers instead.
  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

resource "aws_secretsmanager_secret" "auth" {
  # checkov:skip=CKV2_AWS_57:A rotation must reach the pods in the same minute; README.md describes it as a rolling restart.
  name                    = "${var.name}-redis"
  description             = "Password of the Redis replication group ${var.name}"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.secret_recovery_days
}

data "aws_secretsmanager_random_password" "auth" {
  password_length     = 40
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret_version" "auth" {
  secret_id     = aws_secretsmanager_secret.auth.id
  secret_string = data.aws_secretsmanager_random_password.auth.random_password

  # Each plan draws another password; the first one counts.
  lifecycle {
    ignore_changes = [secret_string]
  }
}

resource "aws_elasticache_replication_group" "this" {
  replication_group_id       = var.name
  description                = "Online store of ${var.name}"
  engine                     = "redis"
  engine_version             = "7.1"
  node_type                  = var.node_type
  num_node_groups            = var.num_node_groups
  replicas_per_node_group    = var.replicas_per_node_group
  automatic_failover_enabled = true
  multi_az_enabled           = var.replicas_per_node_group > 0
  subnet_group_name          = aws_elasticache_subnet_group.this.name
  security_group_ids         = [aws_security_group.this.id]
  parameter_group_name       = aws_elasticache_parameter_group.this.name
  transit_encryption_enabled = var.transit_encryption_enabled
  at_rest_encryption_enabled = true
  kms_key_id                 = var.kms_key_arn
  auth_token                 = aws_secretsmanager_secret_version.auth.secret_string
  # The log is the truth: a store that was lost is rebuilt from it, so a day of snapshots is for convenience.
  snapshot_retention_limit = var.snapshot_retention_days

  timeouts {
    create = "60m"
    update = "60m"
    delete = "45m"
  }
}
