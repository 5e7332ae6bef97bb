variable "name" {
  description = "Name of the cluster, and what the names of all resources begin with."
  type        = string
}

variable "environment" {
  description = "`production` refuses what could lose an acknowledged record; `development` does not."
  type        = string

  validation {
    condition     = contains(["production", "development"], var.environment)
    error_message = "environment must be production or development."
  }
}

variable "vpc_id" {
  description = "VPC of the brokers."
  type        = string
}

variable "broker_node_client_subnets" {
  description = "Private subnets of the brokers, one in each zone."
  type        = list(string)

  validation {
    condition     = length(var.broker_node_client_subnets) >= 2
    error_message = "broker_node_client_subnets must be two at least: a single zone is a single point of failure."
  }
}

variable "client_security_group_ids" {
  description = "Security groups of the clients, by a name for each; nobody else reaches the brokers."
  type        = map(string)
}

variable "kafka_version" {
  description = "Version of Kafka on the brokers."
  type        = string
  default     = "3.9.x"

  validation {
    condition     = can(regex("^[3-9]\\.[0-9]+\\.([0-9]+|x)(\\.kraft)?$", var.kafka_version))
    error_message = "kafka_version must be a version as MSK names them, 3.0 at least, as in 3.9.x or 4.1.x.kraft."
  }
}

variable "number_of_broker_nodes" {
  description = "Brokers, all zones together."
  type        = number
  default     = 3
}

variable "broker_node_instance_type" {
  description = "Instance type of a broker."
  type        = string
  default     = "kafka.m7g.large"

  validation {
    condition     = startswith(var.broker_node_instance_type, "kafka.")
    error_message = "broker_node_instance_type must be one of MSK's, as in kafka.m7g.large."
  }
}

variable "broker_node_storage_gib" {
  description = "Disk of a broker. The topics must last as long as the longest window reaches."
  type        = number
  default     = 1000

  validation {
    condition     = var.broker_node_storage_gib >= 10 && var.broker_node_storage_gib <= 16384
    error_message = "broker_node_storage_gib must lie between 10 and 16384."
  }
}

variable "replication_factor" {
  description = "Replicas of each partition."
  type        = number
  default     = 3

  validation {
    condition     = var.replication_factor >= (var.environment == "production" ? 3 : 2)
    error_message = "replication_factor must be 3 at least in production, 2 elsewhere: with fewer, a broker that dies while another is being replaced takes acknowledged records with it."
  }
}

variable "min_insync_replicas" {
  description = "Replicas that must have a record before it is acknowledged."
  type        = number
  default     = 2

  validation {
    condition     = var.min_insync_replicas >= (var.environment == "production" ? 2 : 1)
    error_message = "min_insync_replicas must be 2 at least in production: an acknowledged record must be on two brokers."
  }

  validation {
    condition     = var.min_insync_replicas < var.replication_factor
    error_message = "min_insync_replicas must be below replication_factor: else nothing can be written while one broker is away."
  }
}

variable "encryption_in_transit_client_broker" {
  description = "How clients talk to the brokers. There is one choice; the variable is here so that the other is refused in words."
  type        = string
  default     = "TLS"

  validation {
    condition     = var.encryption_in_transit_client_broker == "TLS"
    error_message = "encryption_in_transit_client_broker must be TLS: card data does not travel over an unencrypted listener."
  }
}

variable "scram_username" {
  description = "Name that fraudline logs in under."
  type        = string
  default     = "fraudline"
}

variable "kms_key_arn" {
  description = "Key for the disks, the logs and the login."
  type        = string
}

variable "log_retention_days" {
  description = "How long the brokers' logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "log_retention_days must be 365 at least: who did what is asked months later."
  }
}

variable "secret_recovery_days" {
  description = "How long a deleted login can be brought back; 0 deletes at once, so that its name is free again."
  type        = number
  default     = 7
}
