# ScyllaDB on instances with local disks, from ScyllaDB's own image: TLS for clients and between nodes, logins required.
# It has the outputs of the redis module, so that either may stand behind fraudline.

locals {
  ports = { cql = 9142, internode = 7001 }

  # What ScyllaDB's image reads at its first boot.
  user_data = {
    start_scylla_on_first_boot = true
    post_configuration_script  = base64encode(local.fetch_certificates)
    scylla_yaml = {
      cluster_name              = var.name
      endpoint_snitch           = "Ec2Snitch"
      authenticator             = "PasswordAuthenticator"
      authorizer                = "CassandraAuthorizer"
      native_transport_port     = null
      native_transport_port_ssl = local.ports.cql
      seed_provider = [{
        class_name = "org.apache.cassandra.locator.SimpleSeedProvider"
        parameters = [{ seeds = join(",", aws_network_interface.this[*].private_ip) }]
      }]
      client_encryption_options = merge(local.certificate, { enabled = true })
      server_encryption_options = merge(local.certificate, { internode_encryption = "all" })
    }
  }
  certificate = {
    certificate = "/etc/scylla/tls/certificate.pem"
    keyfile     = "/etc/scylla/tls/key.pem"
    truststore  = "/etc/scylla/tls/ca.pem"
  }
  fetch_certificates = <<-END
    #!/bin/bash
    set -euo pipefail
    install -d -o scylla -g scylla -m 0750 /etc/scylla/tls
    secret=$(aws secretsmanager get-secret-value --region ${data.aws_region.current.name} --secret-id ${var.certificate_secret_arn} --query SecretString --output text)
    for name in ca certificate key; do
        python3 -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$secret" "$name" > "/etc/scylla/tls/$name.pem"
    done
    chown scylla:scylla /etc/scylla/tls/*.pem
    chmod 0600 /etc/scylla/tls/key.pem
  END
}

data "aws_region" "current" {}

resource "aws_security_group" "this" {
  name        = "${var.name}-scylla"
  description = "ScyllaDB nodes of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "cql" {
  for_each                     = var.client_security_group_ids
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = each.value
  description                  = "CQL over TLS from ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = local.ports.cql
  to_port                      = local.ports.cql
}

resource "aws_vpc_security_group_ingress_rule" "internode" {
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = aws_security_group.this.id
  description                  = "Between the nodes, over TLS"
  ip_protocol                  = "tcp"
  from_port                    = local.ports.internode
  to_port                      = local.ports.internode
}

resource "aws_vpc_security_group_egress_rule" "internode" {
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = aws_security_group.this.id
  description                  = "Between the nodes, over TLS"
  ip_protocol                  = "tcp"
  from_port                    = local.ports.internode
  to_port                      = local.ports.internode
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.this.id
  cidr_ipv4         = "0.0.0.0/0"
  description       = "Certificates, and the session manager in place of SSH"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "certificate" {
  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.certificate_secret_arn]
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]
  }
}

resource "aws_iam_role" "this" {
  name               = "${var.name}-scylla"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

resource "aws_iam_role_policy" "certificate" {
  name   = "certificate"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.certificate.json
}

resource "aws_iam_role_policy_attachment" "session" {
  role       = aws_iam_role.this.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "this" {
  name = "${var.name}-scylla"
  role = aws_iam_role.this.name
}

# Addresses that outlive an instance: its successor is found where it was.
resource "aws_network_interface" "this" {
  count           = var.node_count
  subnet_id       = var.subnet_ids[count.index % length(var.subnet_ids)]
  security_groups = [aws_security_group.this.id]
  description     = "ScyllaDB node ${count.index} of ${var.name}"
}

resource "aws_instance" "this" {
  count                = var.node_count
  ami                  = var.ami_id
  instance_type        = var.instance_type
  iam_instance_profile = aws_iam_instance_profile.this.name
  user_data            = jsonencode(local.user_data)
  ebs_optimized        = true
  monitoring           = true

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }

  root_block_device {
    encrypted  = true
    kms_key_id = var.kms_key_arn
  }

  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.this[count.index].id
  }

  tags = { Name = "${var.name}-scylla-${count.index}" }

  # Data lies on the instance's own disks: a new image, or new settings, must not replace all nodes at once.
  lifecycle {
    ignore_changes = [ami, user_data]
  }
}
