# Amazon EKS: a private control plane, one group of nodes for the services, and one with GPUs where scorers want them.

locals {
  node_groups = merge(
    { services = {
      instance_type = var.instance_type
      ami_type      = var.ami_type
      size          = var.node_count
      gpu           = false
    } },
    var.gpu == null ? {} : { gpu = {
      instance_type = var.gpu.instance_type
      ami_type      = "AL2023_x86_64_NVIDIA"
      size          = var.gpu.node_count
      gpu           = true
    } },
  )
}

data "aws_partition" "current" {}

resource "aws_cloudwatch_log_group" "control_plane" {
  name              = "/aws/eks/${var.name}/cluster"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

data "aws_iam_policy_document" "cluster_assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["eks.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.cluster_assume.json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

# Control plane and nodes: they talk freely to each other, and this is who Kafka and the store let in.
resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Kubernetes nodes of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "nodes" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  description                  = "Among nodes and control plane; network policies say which pods talk"
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "nodes" {
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  description       = "Kafka, the store, images, AWS"
  ip_protocol       = "-1"
}

resource "aws_eks_cluster" "this" {
  name                      = var.name
  version                   = var.cluster_version
  role_arn                  = aws_iam_role.cluster.arn
  enabled_cluster_log_types = ["api", "audit", "authenticator", "controllerManager", "scheduler"]

  vpc_config {
    subnet_ids              = var.subnet_ids
    security_group_ids      = [aws_security_group.nodes.id]
    endpoint_private_access = true
    endpoint_public_access  = length(var.endpoint_public_access_cidrs) > 0
    public_access_cidrs     = length(var.endpoint_public_access_cidrs) > 0 ? var.endpoint_public_access_cidrs : null
  }

  encryption_config {
    resources = ["secrets"]
    provider {
      key_arn = var.kms_key_arn
    }
  }

  depends_on = [aws_iam_role_policy_attachment.cluster, aws_cloudwatch_log_group.control_plane]
}

data "aws_iam_policy_document" "node_assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_assume.json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryReadOnly"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.value}"
}

resource "aws_launch_template" "node" {
  for_each    = local.node_groups
  name_prefix = "${var.name}-${each.key}-"

  vpc_security_group_ids = [aws_security_group.nodes.id]

  # Pods are one hop further away than the node: with a limit of 1 they can't take the node's role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = each.value.gpu ? 100 : 50
      volume_type           = "gp3"
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${each.key}" }
  }
}

resource "aws_eks_node_group" "this" {
  for_each        = local.node_groups
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  ami_type        = each.value.ami_type
  instance_types  = [each.value.instance_type]
  labels          = { "fraudline/nodes" = each.key }

  scaling_config {
    min_size     = each.value.size
    desired_size = each.value.size
    max_size     = each.value.size * 2
  }

  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }

  # A GPU costs as much as ten of the others: nothing runs there that did not ask for one.
  dynamic "taint" {
    for_each = each.value.gpu ? [1] : []
    content {
      key    = "nvidia.com/gpu"
      value  = "present"
      effect = "NO_SCHEDULE"
    }
  }

  depends_on = [aws_iam_role_policy_attachment.node]

  # What a cluster autoscaler has made of it stays.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
}

resource "aws_iam_openid_connect_provider" "this" {
  url            = aws_eks_cluster.this.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}

# The driver that mounts the models: it alone may read them, and only in its own service account.
data "aws_iam_policy_document" "models_assume" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.this.arn]
    }
    dynamic "condition" {
      for_each = { aud = "sts.amazonaws.com", sub = "system:serviceaccount:kube-system:s3-csi-driver-sa" }
      content {
        test     = "StringEquals"
        variable = "${replace(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")}:${condition.key}"
        values   = [condition.value]
      }
    }
  }
}

resource "aws_iam_role" "models" {
  name               = "${var.name}-models"
  assume_role_policy = data.aws_iam_policy_document.models_assume.json
}

resource "aws_iam_role_policy_attachment" "models" {
  role       = aws_iam_role.models.name
  policy_arn = var.models_read_policy_arn
}
