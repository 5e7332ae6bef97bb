mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/test" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/test" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = { identity = [{ oidc = [{ issuer = "https://oidc.test/id/1" }] }] }
  }
}

variables {
  name                   = "test"
  vpc_id                 = "vpc-1"
  subnet_ids             = ["subnet-a", "subnet-b", "subnet-c"]
  models_read_policy_arn = "arn:aws:iam::123456789012:policy/read"
  kms_key_arn            = "arn:aws:kms:us-east-1:123456789012:key/k"
}

run "on_the_cpu" {
  assert {
    condition     = keys(aws_eks_node_group.this) == ["services"] && !output.has_gpu
    error_message = "There must be no nodes but those for the services."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "The control plane must be private unless somebody is let in."
  }
  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"])
    error_message = "Kubernetes' secrets must be encrypted with the deployment's key."
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.metadata_options[0].http_put_response_hop_limit == 1 && template.metadata_options[0].http_tokens == "required"])
    error_message = "Pods must not get at the node's role."
  }
}

run "on_gpus" {
  variables {
    gpu = { instance_type = "g6.xlarge", node_count = 2 }
  }
  assert {
    condition     = one(aws_eks_node_group.this["gpu"].taint).key == "nvidia.com/gpu" && length(aws_eks_node_group.this["services"].taint) == 0
    error_message = "Nodes with GPUs must keep away what did not ask for one, the others must not."
  }
  assert {
    condition     = aws_eks_node_group.this["gpu"].ami_type == "AL2023_x86_64_NVIDIA" && output.has_gpu
    error_message = "Nodes with GPUs need the image with the driver."
  }
}

run "some_are_let_in" {
  variables {
    endpoint_public_access_cidrs = ["192.0.2.0/24"]
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["192.0.2.0/24"])
    error_message = "They, and nobody else, must reach the control plane."
  }
}

run "refuses_the_whole_internet" {
  command = plan
  variables {
    endpoint_public_access_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.endpoint_public_access_cidrs]
}

run "refuses_gpus_that_are_none" {
  command = plan
  variables {
    gpu = { instance_type = "m7i.xlarge", node_count = 2 }
  }
  expect_failures = [var.gpu]
}

run "refuses_what_is_no_version_image_or_count" {
  command = plan
  variables {
    cluster_version    = "1.29"
    ami_type           = "WINDOWS_CORE_2022_x86_64"
    node_count         = 0
    log_retention_days = 30
  }
  expect_failures = [var.cluster_version, var.ami_type, var.node_count, var.log_retention_days]
}
