# For 10 million events a day and to try things out: two zones, the smallest brokers, no GPU. A machine that fails stops it
# until it is replaced; what was acknowledged is on two disks all the same.

provider "aws" {
  default_tags {
    tags = var.tags
  }
}

module "fraudline" {
  source      = "../modules/deployment"
  name        = "small"
  environment = "development"
  disposable  = true
  image       = var.image
  zone_count  = 2

  kafka = {
    number_of_broker_nodes    = 2
    broker_node_instance_type = "kafka.t3.small"
    broker_node_storage_gib   = 300
    replication_factor        = 2
    min_insync_replicas       = 1
  }
  redis = {
    node_type               = "cache.t4g.small"
    num_node_groups         = 2
    replicas_per_node_group = 0
  }
  kubernetes = {
    instance_type                = "t3.xlarge"
    ami_type                     = "AL2023_x86_64_STANDARD"
    node_count                   = 2
    endpoint_public_access_cidrs = var.endpoint_public_access_cidrs
  }
  topics       = { partitions = 8, retention = "45days" }
  scorer       = { replicas = 1, workers = 1 }
  alarm_emails = var.alarm_emails
}
