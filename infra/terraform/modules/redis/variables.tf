variable "name" {
  description = "Id of the replication group, and what the names of all resources begin with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,39}$", var.name))
    error_message = "name must be 1 to 40 lower-case letters, digits and hyphens, a letter first: ElastiCache takes no other."
  }
}

variable "environment" {
  description = "`production` asks for replicas; `development` does not."
  type        = string

  validation {
    condition     = contains(["production", "development"], var.environment)
    error_message = "environment must be production or development."
  }
}

variable "vpc_id" {
  description = "VPC of the nodes."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the nodes, one in each zone."
  type        = list(string)
}

variable "client_security_group_ids" {
  description = "Security groups of the clients, by a name for each; nobody else reaches the nodes."
  type        = map(string)
}

variable "node_type" {
  description = "Instance type of a node."
  type        = string
  default     = "cache.r7g.large"

  validation {
    condition     = startswith(var.node_type, "cache.")
    error_message = "node_type must be one of ElastiCache's, as in cache.r7g.large."
  }
}

variable "num_node_groups" {
  description = "Shards. Keys are spread over them by hash."
  type        = number
  default     = 3

  validation {
    condition     = var.num_node_groups >= 1 && var.num_node_groups <= 500
    error_message = "num_node_groups must lie between 1 and 500."
  }
}

variable "replicas_per_node_group" {
  description = "Replicas of each shard, in other zones."
  type        = number
  default     = 1

  validation {
    condition     = var.replicas_per_node_group >= (var.environment == "production" ? 1 : 0) && var.replicas_per_node_group <= 5
    error_message = "replicas_per_node_group must lie between 1 and 5 in production (0 elsewhere): without a replica, a node that dies pauses all scorers until it is replaced."
  }
}

variable "transit_encryption_enabled" {
  description = "TLS. There is one choice; the variable is here so that the other is refused in words."
  type        = bool
  default     = true

  validation {
    condition     = var.transit_encryption_enabled
    error_message = "transit_encryption_enabled must be true: neither states nor the password travel over an unencrypted listener."
  }
}

variable "snapshot_retention_days" {
  description = "How many daily snapshots are kept; 0 makes none."
  type        = number
  default     = 1
}

variable "kms_key_arn" {
  description = "Key for the memory's snapshots, the disks and the password."
  type        = string
}

variable "secret_recovery_days" {
  description = "How long a deleted password can be brought back; 0 deletes at once, so that its name is free again."
  type        = number
  default     = 7
}
