"""Does by hand what people do beside Terraform, to the double of AWS: python by_hand.py change|empty NAME

`change` alters two things that Terraform made; `empty` empties the buckets, without which a destroy keeps them.
"""

import os
import sys

import boto3


def change(name):
    ec2, s3 = boto3.client("ec2"), boto3.client("s3")
    vpc = ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": [name]}])["Vpcs"][0]["VpcId"]
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": "Name", "Value": "changed-by-hand"}])
    bucket = next(bucket for bucket in buckets(name) if not bucket.startswith(f"{name}-models-access-"))
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})


def empty(name):
    # Not to be logged into the bucket that is emptied.
    models, logs = sorted(buckets(name), key=lambda bucket: bucket.startswith(f"{name}-models-access-"))
    boto3.client("s3").put_bucket_logging(Bucket=models, BucketLoggingStatus={})
    for bucket in (models, logs):
        boto3.resource("s3").Bucket(bucket).object_versions.delete()


def buckets(name):
    named = (bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"])
    return [bucket for bucket in named if bucket.startswith(f"{name}-models-")]


def main():
    command, name = sys.argv[1:]
    if not os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://127.0.0.1:"):
        sys.exit("AWS_ENDPOINT_URL must be that of the double on this machine")
    {"change": change, "empty": empty}[command](name)


if __name__ == "__main__":
    main()
