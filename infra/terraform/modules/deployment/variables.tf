variable "name" {
  description = "What tells this deployment apart from others in the account; all names begin with fraudline- and this."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,19}$", var.name))
    error_message = "name must be 1 to 20 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "environment" {
  description = "`production` refuses what could lose an acknowledged record or stop at the loss of one machine."
  type        = string

  validation {
    condition     = contains(["production", "development"], var.environment)
    error_message = "environment must be production or development."
  }
}

variable "disposable" {
  description = "Whether a destroy takes models and secrets along for good."
  type        = bool
  default     = false

  validation {
    condition     = !(var.disposable && var.environment == "production")
    error_message = "disposable must be false in production: its models are not thrown away by a destroy."
  }
}

variable "cidr" {
  description = "Addresses of the VPC: a /16."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zone_count" {
  description = "Availability zones."
  type        = number
  default     = 3

  validation {
    condition     = var.zone_count >= (var.environment == "production" ? 3 : 2)
    error_message = "zone_count must be 3 in production: three replicas belong into three zones."
  }
}

variable "kafka" {
  description = "The brokers."
  type = object({
    number_of_broker_nodes    = optional(number, 3)
    broker_node_instance_type = optional(string, "kafka.m7g.large")
    broker_node_storage_gib   = optional(number, 1000)
    replication_factor        = optional(number, 3)
    min_insync_replicas       = optional(number, 2)
  })
  default = {}
}

variable "store" {
  description = "The online store: `redis` (ElastiCache) or `scylla` (ScyllaDB on instances)."
  type        = string
  default     = "redis"

  validation {
    condition     = contains(["redis", "scylla"], var.store)
    error_message = "store must be redis or scylla."
  }

  validation {
    condition     = var.store != "scylla" || var.scylla != null
    error_message = "store is scylla: then scylla must say with which image and certificate."
  }
}

variable "redis" {
  description = "The Redis nodes, where `store` is redis."
  type = object({
    node_type               = optional(string, "cache.r7g.large")
    num_node_groups         = optional(number, 3)
    replicas_per_node_group = optional(number, 1)
  })
  default = {}
}

variable "scylla" {
  description = "The ScyllaDB nodes, where `store` is scylla."
  type = object({
    ami_id                 = string
    certificate_secret_arn = string
    instance_type          = optional(string, "i4i.large")
    node_count             = optional(number, 3)
  })
  default = null
}

variable "kubernetes" {
  description = "The nodes that fraudline runs on, and who reaches the control plane from the internet."
  type = object({
    instance_type                = optional(string, "m7g.xlarge")
    ami_type                     = optional(string, "AL2023_ARM_64_STANDARD")
    node_count                   = optional(number, 3)
    gpu                          = optional(object({ instance_type = string, node_count = number }))
    endpoint_public_access_cidrs = optional(list(string), [])
  })
  default = {}
}

variable "topics" {
  description = "Partitions of each topic, and how long records are kept: longer than the longest window reaches."
  type = object({
    partitions = number
    retention  = string
  })

  validation {
    condition     = var.topics.partitions >= var.scorer.replicas * var.scorer.workers
    error_message = "topics.partitions must be scorer.replicas times scorer.workers at least: a worker without a partition has nothing to do."
  }
}

variable "scorer" {
  description = "Scorers, and the threads of each; together one for each 10,000 events a second (infra/README.md)."
  type = object({
    replicas = number
    workers  = number
  })
}

variable "model_name" {
  description = "Which model of the registry serves; the one in the binary if null."
  type        = string
  default     = null
}

variable "image" {
  description = "The container image."
  type = object({
    repository = string
    tag        = string
  })

  validation {
    condition     = var.image.tag != "latest"
    error_message = "image.tag must name a version: what `latest` is changes under a running deployment."
  }
}

variable "alarm_emails" {
  description = "Who is told of the alarms of brokers and store."
  type        = list(string)
  default     = []
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "log_retention_days must be 365 at least: who did what is asked months later."
  }
}
