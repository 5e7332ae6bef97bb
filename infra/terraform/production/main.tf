# For some 40,000 events a second at the peak, with any machine or zone allowed to fail: three brokers, three shards with a
# replica each, two scorers on GPUs.

provider "aws" {
  default_tags {
    tags = var.tags
  }
}

module "fraudline" {
  source      = "../modules/deployment"
  name        = "production"
  environment = "production"
  image       = var.image

  kafka = {
    broker_node_instance_type = "kafka.m7g.large"
    broker_node_storage_gib   = 2000
  }
  redis = {
    node_type               = "cache.r7g.large"
    num_node_groups         = 3
    replicas_per_node_group = 1
  }
  kubernetes = {
    instance_type                = "m7i.xlarge"
    ami_type                     = "AL2023_x86_64_STANDARD"
    node_count                   = 3
    gpu                          = { instance_type = "g6.xlarge", node_count = 2 }
    endpoint_public_access_cidrs = var.endpoint_public_access_cidrs
  }
  topics       = { partitions = 24, retention = "45days" }
  scorer       = { replicas = 2, workers = 2 }
  model_name   = "fraud"
  alarm_emails = var.alarm_emails
}
