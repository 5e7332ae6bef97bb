variable "name" {
  description = "Name of the cluster, and what the names of all resources begin with."
  type        = string
}

variable "environment" {
  description = "`production` asks for three nodes; `development` does not."
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

variable "ami_id" {
  description = "ScyllaDB's image in your region: aws ec2 describe-images --owners 797456418907 --filters 'Name=name,Values=ScyllaDB*'."
  type        = string

  validation {
    condition     = startswith(var.ami_id, "ami-")
    error_message = "ami_id must be the id of an image, as in ami-0123456789abcdef0."
  }
}

variable "instance_type" {
  description = "Instance type of a node; it must have local NVMe disks."
  type        = string
  default     = "i4i.large"

  validation {
    condition     = can(regex("^(i[0-9][a-z]*|im4gn|is4gen)\\.", var.instance_type))
    error_message = "instance_type must have local NVMe disks: one of the i families, as in i4i.large."
  }
}

variable "node_count" {
  description = "Nodes, spread over the subnets."
  type        = number
  default     = 3

  validation {
    condition     = var.node_count >= (var.environment == "production" ? 3 : 1)
    error_message = "node_count must be 3 at least in production: a quorum of three replicas must survive a node."
  }
}

variable "certificate_secret_arn" {
  description = "Secret with the nodes' certificate as JSON: ca, certificate and key, each in PEM."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the root disks and of the certificate's secret."
  type        = string
}
