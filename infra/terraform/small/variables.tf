variable "image" {
  description = "The container image."
  type = object({
    repository = string
    tag        = string
  })
}

variable "endpoint_public_access_cidrs" {
  description = "Who reaches the control plane from the internet; nobody if empty."
  type        = list(string)
  default     = []
}

variable "alarm_emails" {
  description = "Who is told of the alarms of brokers and store."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of every resource, as your account wants them."
  type        = map(string)
  default     = {}
}
