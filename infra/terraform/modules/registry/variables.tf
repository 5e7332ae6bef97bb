variable "name" {
  description = "What the names of all resources begin with."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,35}$", var.name))
    error_message = "name must be 1 to 36 lower-case letters, digits and hyphens: S3 takes no other, and the account's number goes behind it."
  }
}

variable "block_public_access" {
  description = "Keeps the bucket private. There is one choice; the variable is here so that the other is refused in words."
  type        = bool
  default     = true

  validation {
    condition     = var.block_public_access
    error_message = "block_public_access must be true: a model tells what the fraud team looks for."
  }
}

variable "force_destroy" {
  description = "Whether a destroy takes the models along. With `false` a bucket that has any is kept."
  type        = bool
  default     = false
}

variable "kms_key_arn" {
  description = "Key that the models are encrypted with."
  type        = string
}
