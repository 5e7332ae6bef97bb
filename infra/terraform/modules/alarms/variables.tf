variable "name" {
  description = "What the names of all resources begin with."
  type        = string
}

variable "kafka_cluster_name" {
  description = "The MSK cluster that is watched."
  type        = string
}

variable "redis_member_clusters" {
  description = "Ids of the Redis nodes that are watched."
  type        = list(string)
  default     = []
}

variable "emails" {
  description = "Who is told. Each address has to confirm once."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "emails must be e-mail addresses."
  }
}

variable "kms_key_arn" {
  description = "Key that the messages are encrypted with."
  type        = string
}
