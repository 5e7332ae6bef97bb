variable "name" {
  description = "Name of the cluster, and what the names of all resources begin with."
  type        = string
}

variable "cluster_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.33"

  validation {
    condition     = can(regex("^1\\.(3[0-9])$", var.cluster_version))
    error_message = "cluster_version must be 1.30 or later, as in 1.33: the chart's pods sleep before they stop, which older ones don't know."
  }
}

variable "vpc_id" {
  description = "VPC of control plane and nodes."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of control plane and nodes, one in each zone."
  type        = list(string)
}

variable "endpoint_public_access_cidrs" {
  description = "Who reaches the control plane from the internet; nobody if empty."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.endpoint_public_access_cidrs, "0.0.0.0/0")
    error_message = "endpoint_public_access_cidrs must not hold 0.0.0.0/0: name the networks of those who operate the cluster."
  }
}

variable "instance_type" {
  description = "Instance type of the nodes for the services."
  type        = string
  default     = "m7g.xlarge"
}

variable "ami_type" {
  description = "Image of these nodes; it goes with the instance type's processor."
  type        = string
  default     = "AL2023_ARM_64_STANDARD"

  validation {
    condition     = contains(["AL2023_x86_64_STANDARD", "AL2023_ARM_64_STANDARD"], var.ami_type)
    error_message = "ami_type must be AL2023_x86_64_STANDARD or AL2023_ARM_64_STANDARD."
  }
}

variable "node_count" {
  description = "Nodes for the services; twice as many at most, where an autoscaler wants them."
  type        = number
  default     = 3

  validation {
    condition     = var.node_count >= 1
    error_message = "node_count must be 1 at least."
  }
}

variable "gpu" {
  description = "Nodes with NVIDIA GPUs for the scorers; none if null: scorers run on the CPU then."
  type = object({
    instance_type = string
    node_count    = number
  })
  default = null

  validation {
    condition     = var.gpu == null || can(regex("^(g|p)[0-9]", var.gpu.instance_type))
    error_message = "gpu.instance_type must have a GPU: one of the g and p families, as in g6.xlarge."
  }
}

variable "models_read_policy_arn" {
  description = "Policy that lets models be read; the driver that mounts them has it."
  type        = string
}

variable "kms_key_arn" {
  description = "Key for the nodes' disks, the cluster's secrets and the logs."
  type        = string
}

variable "log_retention_days" {
  description = "How long the control plane's logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.log_retention_days >= 365
    error_message = "log_retention_days must be 365 at least: who did what is asked months later."
  }
}
