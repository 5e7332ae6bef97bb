variable "name" {
  description = "What the names of all resources begin with."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC: a /16, which is cut into subnets of 4,096."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && endswith(var.cidr, "/16")
    error_message = "cidr must be a /16 in CIDR notation, as in 10.40.0.0/16."
  }
}

variable "zone_count" {
  description = "Availability zones. Kafka with a replication factor of 3 wants three."
  type        = number
  default     = 3

  validation {
    condition     = contains([2, 3], var.zone_count)
    error_message = "zone_count must be 2 or 3: EKS and MSK need two at least, and nothing here uses a fourth."
  }
}

variable "single_nat_gateway" {
  description = "One NAT gateway for all zones: cheaper, and pods of the other zones lose the internet with its zone."
  type        = bool
  default     = false
}

variable "log_retention_days" {
  description = "How long the records of refused connections are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "log_retention_days must be 365 at least: who did what is asked months later."
  }
}

variable "kms_key_arn" {
  description = "Key that the logs are encrypted with."
  type        = string
}
