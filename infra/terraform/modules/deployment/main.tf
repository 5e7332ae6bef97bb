# All of it: network, Kafka, store, Kubernetes, the models' bucket, alarms; and the Helm values that follow from them.

locals {
  name    = "fraudline-${var.name}"
  clients = { kubernetes = module.kubernetes.node_security_group_id }
  store   = var.store == "redis" ? one(module.redis[*].store) : one(module.scylla[*].store)

  # The chart's values (infra/helm/fraudline/values.yaml): what follows from this infrastructure, and nothing else.
  helm_values = {
    image = { repository = var.image.repository, tag = var.image.tag }
    config = {
      kafka = {
        brokers = module.kafka.bootstrap_brokers_sasl_scram
        tls     = {}
        sasl    = { mechanism = "SCRAM-SHA-512", username = module.kafka.scram_username }
      }
      topics = {
        partitions         = var.topics.partitions
        replication_factor = module.kafka.replication_factor
        retention          = var.topics.retention
      }
      store = local.store
    }
    models = {
      bucket = module.registry.s3_bucket_id
      region = data.aws_region.current.name
      name   = var.model_name
    }
    scorer = {
      replicas = var.scorer.replicas
      workers  = var.scorer.workers
      gpu      = { enabled = module.kubernetes.has_gpu }
    }
    networkPolicy = { cidrs = [module.network.vpc_cidr_block] }
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

# One key for disks, logs, secrets and models. The account's own policies say who may use it, and the services that
# encrypt on their own account are named.
data "aws_iam_policy_document" "key" {
  # checkov:skip=CKV_AWS_109:A key's policy speaks of that key alone; without this statement nobody could change it any more.
  # checkov:skip=CKV_AWS_111:As above.
  # checkov:skip=CKV_AWS_356:In a key's policy `*` is the key itself.
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }
  statement {
    sid       = "Services"
    actions   = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.current.name}.amazonaws.com", "cloudwatch.amazonaws.com"]
    }
  }
}

resource "aws_kms_key" "this" {
  description         = "All that ${local.name} keeps"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
}

resource "aws_kms_alias" "this" {
  name          = "alias/${local.name}"
  target_key_id = aws_kms_key.this.key_id
}

module "network" {
  source             = "../network"
  name               = local.name
  cidr               = var.cidr
  zone_count         = var.zone_count
  single_nat_gateway = var.environment != "production"
  log_retention_days = var.log_retention_days
  kms_key_arn        = aws_kms_key.this.arn
}

module "registry" {
  source        = "../registry"
  name          = local.name
  kms_key_arn   = aws_kms_key.this.arn
  force_destroy = var.disposable
}

module "kubernetes" {
  source                       = "../kubernetes"
  name                         = local.name
  vpc_id                       = module.network.vpc_id
  subnet_ids                   = module.network.private_subnets
  endpoint_public_access_cidrs = var.kubernetes.endpoint_public_access_cidrs
  instance_type                = var.kubernetes.instance_type
  ami_type                     = var.kubernetes.ami_type
  node_count                   = var.kubernetes.node_count
  gpu                          = var.kubernetes.gpu
  models_read_policy_arn       = module.registry.read_policy_arn
  kms_key_arn                  = aws_kms_key.this.arn
  log_retention_days           = var.log_retention_days
}

module "kafka" {
  source                     = "../kafka"
  name                       = local.name
  environment                = var.environment
  vpc_id                     = module.network.vpc_id
  broker_node_client_subnets = module.network.private_subnets
  client_security_group_ids  = local.clients
  number_of_broker_nodes     = var.kafka.number_of_broker_nodes
  broker_node_instance_type  = var.kafka.broker_node_instance_type
  broker_node_storage_gib    = var.kafka.broker_node_storage_gib
  replication_factor         = var.kafka.replication_factor
  min_insync_replicas        = var.kafka.min_insync_replicas
  kms_key_arn                = aws_kms_key.this.arn
  log_retention_days         = var.log_retention_days
  secret_recovery_days       = var.disposable ? 0 : 7
}

module "redis" {
  source                    = "../redis"
  count                     = var.store == "redis" ? 1 : 0
  name                      = local.name
  environment               = var.environment
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.private_subnets
  client_security_group_ids = local.clients
  node_type                 = var.redis.node_type
  num_node_groups           = var.redis.num_node_groups
  replicas_per_node_group   = var.redis.replicas_per_node_group
  kms_key_arn               = aws_kms_key.this.arn
  secret_recovery_days      = var.disposable ? 0 : 7
}

module "scylla" {
  source                    = "../scylla"
  count                     = var.store == "scylla" ? 1 : 0
  name                      = local.name
  environment               = var.environment
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.private_subnets
  client_security_group_ids = local.clients
  ami_id                    = var.scylla.ami_id
  instance_type             = var.scylla.instance_type
  node_count                = var.scylla.node_count
  certificate_secret_arn    = var.scylla.certificate_secret_arn
  kms_key_arn               = aws_kms_key.this.arn
}

module "alarms" {
  source             = "../alarms"
  name               = local.name
  kafka_cluster_name = module.kafka.cluster_name
  # The nodes' names follow from the sizes, so that the alarms are known before the nodes are.
  redis_member_clusters = var.store != "redis" ? [] : flatten([
    for shard in range(1, var.redis.num_node_groups + 1) : [
      for node in range(1, var.redis.replicas_per_node_group + 2) : format("%s-%04d-%03d", local.name, shard, node)
    ]
  ])
  emails      = var.alarm_emails
  kms_key_arn = aws_kms_key.this.arn
}
